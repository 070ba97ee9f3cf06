from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsens.errors import InputError
from distsens.evaluation import Ledger, check_claim, make_claim, verify
from distsens.evaluation.ledger import broken_column, evaluations_column


def ledger(fates: list[int]) -> Ledger:
    """Images that are wrong as they are (0), broken (1), or stand (2)."""
    count = len(fates)
    return Ledger(
        pd.DataFrame(
            {
                "image": pd.array(range(count), dtype="Int64"),
                "label": pd.array([0] * count, dtype="Int64"),
                "prediction": pd.array([int(fate == 0) for fate in fates], dtype="Int64"),
                "broken_by": pd.array([("clean", "pgd", None)[fate] for fate in fates], dtype="string"),
                broken_column("pgd"): pd.array([(None, True, False)[fate] for fate in fates], dtype="boolean"),
                evaluations_column("pgd"): pd.array([3] * count, dtype="Int64"),
            }
        )
    )


def claim(fates: list[int]) -> dict[str, Any]:
    made = make_claim(
        ledger(fates),
        examination={"threat": {"norm": "linf", "eps": 0.3}, "seed": 0},
        model={"name": "net", "sha256": "a" * 64},
        data={"name": "mnist", "digest": "d" * 64},
        versions={"torch": "2"},
        seconds=1.0,
    )
    return check_claim(json.loads(json.dumps(made)), "claim.json")


def verdict(claimed: list[int], found: list[int], **changes: str) -> Any:
    return verify(claim(claimed), ledger(found), **{"model_sha256": "a" * 64, "data_digest": "d" * 64, **changes})


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_a_claim_holds_against_the_ledger_that_it_was_made_of_and_every_beginning_of_it(fates: list[int]) -> None:
    assert claim(fates)["robust_accuracy"]["count"] == fates.count(2)
    for count in range(1, len(fates) + 1):
        checked = verdict(fates, fates[:count])
        assert checked.holds
        assert (checked.images, checked.overclaimed, checked.underclaimed) == (count, 0, 0)


def test_images_that_do_not_stand_refute_a_claim_and_those_that_do_not_fall_do_not() -> None:
    assert not verdict([2] * 100, [2] * 98 + [1] * 2).holds
    assert not verdict([2] * 100, [2] * 98 + [0] * 2).holds
    assert verdict([1] * 50 + [2] * 50, [2] * 100).holds
    assert verdict([2] * 1000, [2] * 997 + [1] * 3).holds, "0.3 % is rounding between machines"


@pytest.mark.parametrize("changes", [{"model_sha256": "b" * 64}, {"data_digest": "e" * 64}])
def test_another_model_and_other_images_refute_a_claim(changes: dict[str, str]) -> None:
    checked = verdict([2] * 10, [2] * 10, **changes)
    assert not checked.holds
    assert "SHA-256" in checked.sentence


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "format 2"),
        ({"standing": None}, "lacks standing"),
        ({"standing": "ff"}, "contradicts itself"),
    ],
)
def test_what_is_no_sound_claim_is_refused(change: dict[str, Any], reason: str) -> None:
    broken = {key: value for key, value in {**claim([2, 1, 0, 2, 1]), **change}.items() if value is not None}
    with pytest.raises(InputError, match=reason):
        check_claim(broken, "claim.json")
    with pytest.raises(InputError, match="JSON object"):
        check_claim([1], "claim.json")
