"""A claim is judged anew as it says itself, on images that who made it could not foresee."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distsens.distributed.verification import check_judges_claim, fields_to_verify, read_claim
from distsens.errors import InputError
from distsens.evaluation import Proportion, proportion
from distsens.examination import Examination
from distsens.experiment import merge

CLAIMED = Examination.parse(
    {
        "model": {"address": "net.pt", "factory": "lenet5"},
        "data": {"name": "mnist", "root": "/theirs", "limit": 400},
        "threat": {"norm": "linf", "eps": 0.3},
        "storage": {"path": "/their/runs"},
    }
)


def claim(**changes: Any) -> dict[str, Any]:
    """Of a model that is never wrong."""
    everything = proportion(Proportion(400, 400))
    return {
        "format": 2,
        "examination": CLAIMED.model_dump(mode="json"),
        "model": {"name": "net", "sha256": "a" * 64, "architecture": {"name": "lenet5"}},
        "source_sha256": None,
        "data": {"name": "mnist", "split": "test", "images": 400, "choice": "stratified", "digest": "d" * 64},
        "threat": {"norm": "linf", "eps": 0.3},
        "attacks": {
            name: {"settings": {}, "standing": everything} for name in ("apgd-ce", "apgd-t", "fab-t", "square")
        },
        "images": 400,
        "clean_accuracy": everything,
        "robust_accuracy": everything,
        "right": "f" * 100,
        "standing": "f" * 100,
        **changes,
    }


def test_a_claim_whose_attacks_are_not_its_examinations_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    path.write_text(json.dumps(claim()))
    assert read_claim(str(path)) == claim()
    weak = merge(claim(), {"examination": {"attacks": ["pgd"]}})
    path.write_text(json.dumps(weak))
    with pytest.raises(
        InputError, match=r"contradicts itself: attacks are .*'square'.*, and its examination's .*'pgd'"
    ):
        read_claim(str(path))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"pgd": {"steps": 0}}, "pgd.steps"), ({"attacks": ["nonsense"]}, "attacks: got 'nonsense'"), ({"new": 1}, "new")],
)
def test_a_claim_with_an_examination_that_cannot_be_is_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = tmp_path / "claim.json"
    path.write_text(json.dumps(merge(claim(), {"examination": change})))
    with pytest.raises(InputError, match=f"^verify: .*its examination is none of this version: {says}"):
        read_claim(str(path))


def test_only_what_the_claim_speaks_of_is_judged_anew_and_no_place_of_who_made_it_is_looked_at() -> None:
    extras = {"eps_curve": [0.1], "corruptions": ["all"], "diagnostics": True, "baseline": "/their/summary.json"}
    found = Examination.parse(fields_to_verify(merge(claim(), {"examination": extras}), {}))
    assert (found.eps_curve, found.corruptions, found.diagnostics, found.baseline) == ((), (), False, None)
    assert found.data.root is None
    assert found.model.factory is None, "a claim names no code to run"


def test_a_claim_from_before_there_was_a_choice_is_about_the_first_images(tmp_path: Path) -> None:
    older = merge(claim(), {"examination": {"data": {"choice": None}}, "data": {"choice": None}})
    del older["examination"]["data"]["choice"], older["data"]["choice"]
    (tmp_path / "claim.json").write_text(json.dumps(older))
    assert Examination.parse(fields_to_verify(read_claim(str(tmp_path / "claim.json")), {})).data.choice == "first"
    assert Examination.parse(fields_to_verify(claim(), {})).data.choice == "stratified"
    with pytest.raises(InputError, match=r"its data\.choice is not what is claimed"):
        check_judges_claim(older, CLAIMED, "evaluate-net")


def test_more_images_than_are_claimed_are_refused() -> None:
    with pytest.raises(InputError, match=r"^data.limit: got 401; the claim is about 400 images"):
        fields_to_verify(claim(), {"data": {"limit": 401}})
    with pytest.raises(InputError, match=r"^data.limit: got 'ten'"):
        fields_to_verify(claim(), {"data": {"limit": "ten"}})


def test_it_is_judged_as_it_says_but_in_other_places() -> None:
    changes = {"model": {"address": "copy.pt"}, "data": {"root": "/ours"}, "workers": {"num": 3}}
    found = Examination.parse(fields_to_verify(claim(), changes))
    assert found.data.root == "/ours"
    assert (found.workers.num, found.storage.path, found.data.limit, found.data.images) == (3, None, 400, ())
    same = {"model": CLAIMED.model}
    assert found.model_copy(update=same).digest() == CLAIMED.digest()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"attacks": ["pgd"]}, "attacks"),
        ({"threat": {"eps": 0.0001}}, "threat.eps"),
        ({"pgd": {"steps": 1}}, "pgd.steps"),
        ({"seed": 1}, "seed"),
        ({"every_attack": True}, "every_attack"),
        ({"data": {"name": "digits"}}, "data.name"),
        ({"data": {"split": "train"}}, "data.split"),
        ({"data": {"choice": "first"}}, "data.choice"),
        ({"data": {"images": [1, 2]}}, "data.images"),
    ],
)
def test_what_is_claimed_cannot_be_eased(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: .*as it says itself"):
        fields_to_verify(claim(), change)


def test_a_sample_is_drawn_at_random_from_all_of_the_claims_images_each_time_anew() -> None:
    draws = [tuple(fields_to_verify(claim(), {"data": {"limit": 40}})["data"]["images"]) for _ in range(3)]
    assert len(set(draws)) == 3
    for drawn in draws:
        assert len(set(drawn)) == 40
        assert set(drawn) <= set(range(400))
        assert max(drawn) >= 40, "the first images alone are what a forger would be honest on"


def test_an_evaluation_that_is_resumed_must_judge_what_is_claimed() -> None:
    check_judges_claim(claim(), CLAIMED, "evaluate-net")
    for change in ({"attacks": ["pgd"]}, {"threat": {"eps": 0.1}}, {"data": {"name": "digits"}}):
        other = Examination.parse(merge(CLAIMED.model_dump(mode="json"), change))
        with pytest.raises(InputError, match="not what is claimed"):
            check_judges_claim(claim(), other, "evaluate-net")


def test_no_more_images_are_judged_than_a_claim_lists_though_its_examination_has_no_limit() -> None:
    whole = merge(claim(), {"examination": {"data": {"limit": None}}})
    assert fields_to_verify(whole, {})["data"]["limit"] == 400
    assert max(fields_to_verify(whole, {"data": {"limit": 40}})["data"]["images"]) < 400
    check_judges_claim(whole, Examination.parse(fields_to_verify(whole, {})), "evaluate-net")
