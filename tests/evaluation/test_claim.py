from __future__ import annotations

import json
import re
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsens.errors import InputError
from distsens.evaluation import Ledger, Proportion, check_claim, make_claim, proportion, verify
from distsens.evaluation.ledger import broken_column, evaluations_column
from distsens.examination import Examination
from distsens.experiment import merge


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


MODEL = {"name": "net", "sha256": "a" * 64, "architecture": {"name": "lenet5", "std": [0.5]}, "additional_data": False}
SETTINGS = {"pgd": {"kind": "LastIterate", "attack": {"steps": 40}}}


def claim(fates: list[int]) -> dict[str, Any]:
    made = make_claim(
        ledger(fates),
        examination=Examination.parse(
            {"threat": {"norm": "linf", "eps": 0.3}, "data": {"name": "mnist"}, "attacks": ["pgd"]}
        ).model_dump(mode="json"),
        model=MODEL,
        source_sha256="b" * 64,
        data={"name": "mnist", "split": "test", "images": len(fates), "digest": "d" * 64},
        settings=SETTINGS,
        versions={"torch": "2"},
        commit="c0ffee",
        seconds=1.0,
    )
    return check_claim(json.loads(json.dumps(made)), "claim.json")


def verdict(claimed: list[int], found: list[int], **changes: Any) -> Any:
    known = {"model": MODEL, "data_digest": "d" * 64, "source_sha256": "b" * 64, "settings": SETTINGS}
    return verify(claim(claimed), ledger(found), **{**known, **changes})


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
    for few in (1, 10, 100):
        refuted = verdict([2] * few, [2] * (few - 1) + [1])
        assert not refuted.holds
    assert "no more than 5.4% are overclaimed, with 97.5 % confidence" in refuted.sentence


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {**MODEL, "sha256": "e" * 64}}, "the model has SHA-256 eeeeeeeeeeee, claimed is aaaaaaaaaaaa"),
        ({"data_digest": "e" * 64}, "the data has SHA-256 eeeeeeeeeeee"),
        ({"source_sha256": None}, "the model that transfer names has SHA-256 none, claimed is bbbbbbbbbbbb"),
        ({"model": {**MODEL, "architecture": {"name": "lenet5", "std": [1.0]}}}, "the architecture is"),
        ({"settings": {"pgd": {"kind": "LastIterate", "attack": {"steps": 4}}}}, "pgd has the settings .* 4"),
    ],
)
def test_another_model_other_images_and_other_attacks_refute_a_claim(changes: dict[str, Any], says: str) -> None:
    checked = verdict([2] * 10, [2] * 10, **changes)
    assert not checked.holds
    assert re.match(f"the claim does not hold: {says}", checked.sentence)


def test_a_claim_says_what_a_leaderboard_asks_and_what_it_was_made_by() -> None:
    made = claim([2, 1])
    assert made["model"] == MODEL
    assert made["attacks"]["pgd"]["settings"] == SETTINGS["pgd"]
    assert (made["commit"], made["source_sha256"], made["seconds"]) == ("c0ffee", "b" * 64, 1.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 1}, "format 1"),
        ({"standing": None}, "lacks standing"),
        ({"threat": None}, "lacks threat"),
        ({"model": {"name": "net"}}, "lacks model.sha256"),
        ({"model": "net"}, "of model, it should be a valid dictionary$"),
        ({"robust_accuracy": 0.5}, "of robust_accuracy, it should be a valid dictionary$"),
        ({"robust_accuracy": {**proportion(Proportion(2, 5)), "count": "2"}}, "of robust_accuracy.count, it should be"),
        ({"clean_accuracy": {**proportion(Proportion(2, 5)), "low": float("nan")}}, "of clean_accuracy.low, it should"),
        ({"images": 0}, "of images, it should be greater than or equal to 1"),
        ({"images": True}, "of images, it should be a valid integer"),
        ({"standing": ["9", "0"]}, "of standing, it should be a valid string"),
        ({"attacks": ["pgd"]}, "of attacks, it should be a valid dictionary"),
        ({"attacks": {"pgd": 0.4}}, "of attacks.pgd, it should be a valid dictionary"),
        ({"examination": {}}, "lacks examination.attacks, examination.threat, examination.data"),
    ],
)
def test_what_is_no_sound_claim_is_refused(change: dict[str, Any], reason: str) -> None:
    broken = {key: value for key, value in {**claim([2, 1, 0, 2, 1]), **change}.items() if value is not None}
    with pytest.raises(InputError, match=reason):
        check_claim(broken, "claim.json")
    with pytest.raises(InputError, match="JSON object"):
        check_claim([1], "claim.json")


FATES = [2, 1, 0, 2, 1]
MORE = proportion(Proportion(3, 5))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"robust_accuracy": {"value": 0.999}}, "robust_accuracy.value is 0.999, and its count makes 0.4"),
        ({"robust_accuracy": {"low": 0.39}}, "robust_accuracy.low is 0.39"),
        ({"clean_accuracy": {"high": 1.0}}, "clean_accuracy.high is 1.0"),
        ({"robust_accuracy": MORE}, "robust_accuracy counts 3 images, and 2 are listed"),
        (
            {"attacks": {"pgd": {"standing": MORE}}},
            r"after the attacks in turn \[4, 3\] images stand, and 2 are listed",
        ),
        ({"attacks": {"pgd": {"standing": {"value": 0.9}}}}, "attacks.pgd.value is 0.9"),
        ({"standing": "b0"}, "standing lists images that right does not"),
        ({"standing": "d0"}, "robust_accuracy counts 2 images, and 3 are listed"),
        ({"standing": "900"}, "standing must be 2 hexadecimal digits for 5 images"),
        ({"standing": "9z"}, "standing must be 2 hexadecimal digits for 5 images"),
        ({"images": 1000}, "right must be 250 hexadecimal digits for 1000 images"),
        ({"images": 6}, "counts 2 of 5 images, and there are 6"),
        ({"data": {"images": 1000}}, "data.images is 1000, and its examination was of 5"),
        ({"threat": {"eps": 8.0}}, "threat is .*8.0.*, and its examination was of .*0.3"),
        ({"data": {"name": "cifar10"}}, "data.name is cifar10, and its examination was of mnist"),
        ({"data": {"split": "train"}}, "data.split is train"),
        ({"examination": {"data": {"limit": 50}}}, "images is 5, and its examination was of 50"),
        ({"examination": {"data": {"images": [0, 3]}}}, "images that somebody chose"),
    ],
)
def test_a_claim_that_says_one_thing_and_lists_another_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=f"contradicts itself: .*({reason})"):
        check_claim(merge(claim(FATES), change), "claim.json")
