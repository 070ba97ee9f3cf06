from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from distsens.errors import InputError
from distsens.evaluation import Ledger, Proportion, check_claim, make_claim, proportion, verify
from distsens.evaluation.claim import too_few
from distsens.evaluation.ledger import broken_column, evaluations_column
from distsens.examination import Examination
from distsens.experiment import merge


def ledger(fates: list[int], attacks: tuple[str, ...] = ("pgd",), images: Sequence[int] = ()) -> Ledger:
    """Images that are wrong as they are (0), broken by the first attack (1), the second one (2), ..., or stand (-1)."""
    count = len(fates)
    broken_by = [None if fate < 0 else ("clean", *attacks)[fate] for fate in fates]
    broken = {
        broken_column(name): pd.array(
            [None if 0 <= fate < number else fate == number for fate in fates], dtype="boolean"
        )
        for number, name in enumerate(attacks, 1)
    }
    spent = {evaluations_column(name): pd.array([3] * count, dtype="Int64") for name in attacks}
    return Ledger(
        pd.DataFrame(
            {
                "image": pd.array(list(images) or range(count), dtype="Int64"),
                "label": pd.array([0] * count, dtype="Int64"),
                "prediction": pd.array([int(fate == 0) for fate in fates], dtype="Int64"),
                "broken_by": pd.array(broken_by, dtype="string"),
                **broken,
                **spent,
            }
        )
    )


ARCHITECTURE = {"name": "lenet5", "mean": [0.0], "std": [0.5], "small_images": False}
COMPUTES: dict[str, Any] = {"weights_sha256": "c" * 64, "logits": [[1.0, -1.0], [0.25, None]]}
MODEL = {
    "name": "net",
    "sha256": "a" * 64,
    "architecture": ARCHITECTURE,
    "additional_data": False,
    "computes": COMPUTES,
}
SOURCE = {"sha256": "b" * 64, "architecture": ARCHITECTURE, "computes": COMPUTES}
ATTACKS = ("apgd-ce", "square", "pgd")
SETTINGS = {name: {"kind": "LastIterate", "attack": {"steps": 40}} for name in ATTACKS}


def claim(fates: list[int], attacks: tuple[str, ...] = ("pgd",)) -> dict[str, Any]:
    made = make_claim(
        ledger(fates, attacks),
        examination=Examination.parse(
            {"threat": {"norm": "linf", "eps": 0.3}, "data": {"name": "mnist"}, "attacks": list(attacks)}
        ).model_dump(mode="json"),
        model=MODEL,
        source=SOURCE,
        data={"name": "mnist", "split": "test", "images": len(fates), "choice": "stratified", "digest": "d" * 64},
        settings=SETTINGS,
        versions={"torch": "2"},
        commit="c0ffee",
        seconds=1.0,
    )
    return check_claim(json.loads(json.dumps(made)), "claim.json")


KNOWN: dict[str, Any] = {"model": MODEL, "data_digest": "d" * 64, "source": SOURCE, "settings": SETTINGS}


def verdict(claimed: list[int], found: list[int], **changes: Any) -> Any:
    return verify(claim(claimed), ledger(found), **{**KNOWN, **changes})


@given(st.lists(st.integers(-1, 1), min_size=1, max_size=40))
def test_a_claim_holds_against_the_ledger_that_it_was_made_of_and_every_beginning_of_it(fates: list[int]) -> None:
    assert claim(fates)["robust_accuracy"]["count"] == fates.count(-1)
    for count in {1, 1 + len(fates) // 2, len(fates)}:
        checked = verdict(fates, fates[:count])
        assert checked.holds
        assert (checked.images, checked.overclaimed, checked.underclaimed) == (count, 0, 0)


def test_images_are_compared_by_their_numbers_in_the_split_of_which_the_claims_are_some() -> None:
    fates, numbers = [-1, 1, 0, -1, 1], [3, 7, 11, 40, 41]
    assert verify(claim(fates), ledger(fates[2:], images=numbers[2:]), numbers=numbers, **KNOWN).holds
    assert verify(claim(fates), ledger(fates[2:], images=numbers[:3]), numbers=numbers, **KNOWN).overclaimed == 1
    attacks = ("apgd-ce", "pgd")
    settings = {**KNOWN, "settings": {name: SETTINGS[name] for name in attacks}}
    fates, numbers = [2] * 50 + [-1] * 50, [3 * number for number in range(100)]
    weaker = ledger([1] * 50 + [-1] * 50, attacks, images=numbers)
    refuted = verify(claim(fates, attacks), weaker, numbers=numbers, **settings)
    assert refuted.faults == ("of 100 images judged anew, apgd-ce breaks 50 that it is claimed to leave",)


def test_images_that_do_not_stand_refute_a_claim_and_those_that_do_not_fall_do_not() -> None:
    assert not verdict([-1] * 100, [-1] * 98 + [1] * 2).holds
    assert not verdict([-1] * 100, [-1] * 98 + [0] * 2).holds
    assert verdict([1] * 50 + [-1] * 50, [-1] * 100).holds
    assert verdict([-1] * 1000, [-1] * 997 + [1] * 3).holds, "0.3 % is rounding between machines"
    for few in (1, 10, 100):
        refuted = verdict([-1] * few, [-1] * (few - 1) + [1])
        assert not refuted.holds
    assert "no more than 5.4% are overclaimed, with 97.5 % confidence" in refuted.sentence


OTHER = {"weights_sha256": "e" * 64, "logits": [[1.0, -1.0], [0.3, None]]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"model": {**MODEL, "computes": OTHER}},
            "the model has other weights: the SHA-256 of their values is eeeeeeeeeeee, claimed is cccccccccccc; "
            "on fixed images its logits differ from those claimed by up to 0.025 of their range",
        ),
        (
            {"model": {**MODEL, "computes": {**OTHER, "weights_sha256": "c" * 64}}},
            "the model has the weights that are claimed in another network; .* 0.025 of their range",
        ),
        ({"model": {**MODEL, "computes": {**COMPUTES, "logits": [[1.0, -1.0, 0.0]]}}}, ".* claimed in number"),
        ({"data_digest": "e" * 64}, "the data has SHA-256 eeeeeeeeeeee"),
        ({"source": None}, "the model that transfer names has SHA-256 none, claimed is bbbbbbbbbbbb"),
        ({"source": {**SOURCE, "computes": OTHER}}, "the model that transfer names has other weights"),
        (
            {"model": {**MODEL, "computes": OTHER, "architecture": {**ARCHITECTURE, "std": [1.0]}}},
            r"the model is normalised by mean \[0.0\] and std \[1.0\], claimed is mean \[0.0\] and std \[0.5\]; on",
        ),
        (
            {"model": {**MODEL, "additional_data": True}},
            "the model was trained with additional data, claimed is without",
        ),
        ({"settings": {"pgd": {"kind": "LastIterate", "attack": {"steps": 4}}}}, "pgd has the settings .* 4"),
    ],
)
def test_another_model_other_images_and_other_attacks_refute_a_claim(changes: dict[str, Any], says: str) -> None:
    checked = verdict([-1] * 10, [-1] * 10, **changes)
    assert not checked.holds
    assert re.match(f"the claim does not hold: {says}", checked.sentence), checked.sentence


@pytest.mark.parametrize(
    ("changes", "notices"),
    [
        ({"name": "another", "sha256": "f" * 64}, ()),
        (
            {"architecture": {**ARCHITECTURE, "name": "my_models:net"}},
            ("the model is built by my_models:net, and was by lenet5 when it was claimed",),
        ),
        ({"architecture": {**ARCHITECTURE, "std": [0.5, 0.50000001, 0.5]}}, ()),
        ({"computes": {**COMPUTES, "logits": [[1.00001, -1.0], [0.25001, None]]}}, ()),
        (
            {"computes": {**COMPUTES, "weights_sha256": "e" * 64}},
            ("the model has weights of other values than claimed, which compute the same",),
        ),
        ({"additional_data": None}, ()),
    ],
)
def test_another_name_or_file_of_what_computes_the_same_is_no_other_model(
    changes: dict[str, Any], notices: tuple[str, ...]
) -> None:
    checked = verdict([-1] * 10, [-1] * 10, model={**MODEL, **changes})
    assert checked.holds, checked.sentence
    assert checked.notices == notices


def earlier(made: dict[str, Any]) -> dict[str, Any]:
    """The same as a claim of format 2."""
    model = {key: value for key, value in made["model"].items() if key != "computes"}
    attacks = {name: {key: attack[key] for key in ("settings", "standing")} for name, attack in made["attacks"].items()}
    rest = {key: value for key, value in made.items() if key != "source"}
    changed = {"format": 2, "model": model, "attacks": attacks, "source_sha256": made["source"]["sha256"]}
    return check_claim({**rest, **changed}, "claim.json")


def test_a_claim_of_the_format_before_knows_models_by_their_files_and_how_they_are_normalised() -> None:
    before = earlier(claim([-1, 1, 0]))
    named = {**MODEL, "architecture": {**ARCHITECTURE, "name": "another"}, "computes": OTHER}
    held = verify(before, ledger([-1, 1, 0]), **{**KNOWN, "model": named})
    assert (held.holds, len(held.notices)) == (True, 1)
    for changes, says in (
        ({"model": {**MODEL, "sha256": "e" * 64}}, "the model has SHA-256 eeeeeeeeeeee, claimed is aaaaaaaaaaaa"),
        ({"model": {**MODEL, "architecture": {**ARCHITECTURE, "mean": [0.1]}}}, "the model is normalised by mean"),
        ({"source": {**SOURCE, "sha256": "e" * 64}}, "the model that transfer names has SHA-256 eeeeeeeeeeee"),
    ):
        refuted = verify(before, ledger([-1, 1, 0]), **{**KNOWN, **changes})
        assert re.match(f"the claim does not hold: {says}", refuted.sentence)


def mixed(first: int, second: int, third: int, standing: int) -> list[int]:
    return [1] * first + [2] * second + [3] * third + [-1] * standing


def test_what_is_left_after_each_attack_is_checked_and_not_only_what_stands_in_the_end() -> None:
    honest, forged = mixed(82, 10, 8, 100), mixed(72, 20, 8, 100)
    found = ledger(honest, ATTACKS)
    assert verify(claim(honest, ATTACKS), found, **KNOWN).holds
    refuted = verify(claim(forged, ATTACKS), found, **KNOWN)
    assert refuted.overclaimed == 0
    assert "of 200 images judged anew, apgd-ce breaks 10 that it is claimed to leave" in refuted.sentence
    assert verify(claim(mixed(80, 12, 8, 100), ATTACKS), found, **KNOWN).holds, "rounding moves a few"
    assert verify(claim(mixed(92, 0, 8, 100), ATTACKS), found, **KNOWN).holds, "a claim says what is left at least"


def test_a_count_after_an_attack_that_its_images_do_not_make_is_refused() -> None:
    forged = merge(
        claim(mixed(82, 10, 8, 100), ATTACKS),
        {"attacks": {"apgd-ce": {"standing": proportion(Proportion(128, 200))}}},
    )
    with pytest.raises(InputError, match=r"attacks\.apgd-ce counts 128 images, and 118 are listed"):
        check_claim(forged, "claim.json")


def test_counts_of_the_format_before_are_compared_with_all_images_or_with_what_a_sample_makes_likely() -> None:
    honest, forged = mixed(82, 10, 8, 100), mixed(72, 20, 8, 100)
    for number, (fates, holds) in enumerate(((honest, True), (forged, False))):
        whole = verify(earlier(claim(fates, ATTACKS)), ledger(honest, ATTACKS), **KNOWN)
        assert whole.holds is holds, number
    assert "apgd-ce leaves 118 of 200 images judged anew, claimed are 128 of 200" in whole.sentence
    numbers = range(0, 200, 4)
    sample = ledger([honest[number] for number in numbers], ATTACKS, numbers)
    assert verify(earlier(claim(honest, ATTACKS)), sample, **KNOWN).holds
    bold = claim(mixed(0, 92, 8, 100), ATTACKS)
    assert "apgd-ce leaves 29 of 50 images" in verify(earlier(bold), sample, **KNOWN).sentence


@given(st.data())
def test_the_likelihood_of_a_sample_is_that_of_the_hypergeometric_distribution(data: st.DataObject) -> None:
    images = data.draw(st.integers(1, 60))
    claimed, drawn = data.draw(st.integers(0, images)), data.draw(st.integers(1, images))
    found = data.draw(st.integers(0, drawn))
    expected = hypergeom(images, claimed, drawn).cdf(found)
    if abs(expected - 0.001) > 1e-9:
        assert too_few(found, drawn, claimed, images) == (expected < 0.001)


def test_a_claim_says_what_a_leaderboard_asks_and_what_it_was_made_by() -> None:
    made = claim([-1, 1])
    assert made["model"] == MODEL
    assert made["attacks"]["pgd"]["settings"] == SETTINGS["pgd"]
    assert (made["commit"], made["source"], made["seconds"]) == ("c0ffee", SOURCE, 1.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 1}, "format 1"),
        ({"standing": None}, "lacks standing"),
        ({"threat": None}, "lacks threat"),
        ({"model": {"name": "net"}}, "lacks model.sha256, model.architecture, model.computes"),
        ({"source": {"sha256": "b"}}, "lacks source.architecture, source.computes"),
        ({"attacks": {"pgd": {"settings": {}, "standing": proportion(Proportion(2, 5))}}}, "lacks attacks.pgd.left"),
        ({"model": {**MODEL, "computes": {"weights_sha256": "c", "logits": [["x"]]}}}, "model.computes.logits.0.0"),
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
    broken = {key: value for key, value in {**claim([-1, 1, 0, -1, 1]), **change}.items() if value is not None}
    with pytest.raises(InputError, match=reason):
        check_claim(broken, "claim.json")
    with pytest.raises(InputError, match="JSON object"):
        check_claim([1], "claim.json")


FATES = [-1, 1, 0, -1, 1]
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
            "attacks.pgd counts 3 images, and 2 are listed",
        ),
        ({"attacks": {"pgd": {"left": "d0"}}}, "attacks.pgd counts 2 images, and 3 are listed"),
        ({"attacks": {"pgd": {"left": "b0"}}}, "attacks.pgd lists images that right does not"),
        ({"attacks": {"pgd": {"left": "9"}}}, "attacks.pgd must be 2 hexadecimal digits for 5 images"),
        ({"attacks": {"pgd": {"standing": {"value": 0.9}}}}, "attacks.pgd.value is 0.9"),
        ({"standing": "b0"}, "standing lists images that attacks.pgd does not"),
        ({"standing": "80"}, "robust_accuracy counts 2 images, and 1 are listed"),
        ({"standing": "900"}, "standing must be 2 hexadecimal digits for 5 images"),
        ({"standing": "9z"}, "standing must be 2 hexadecimal digits for 5 images"),
        ({"images": 1000}, "right must be 250 hexadecimal digits for 1000 images"),
        ({"images": 6}, "counts 2 of 5 images, and there are 6"),
        ({"data": {"images": 1000}}, "data.images is 1000, and its examination was of 5"),
        ({"threat": {"eps": 8.0}}, "threat is .*8.0.*, and its examination was of .*0.3"),
        ({"data": {"name": "cifar10"}}, "data.name is cifar10, and its examination was of mnist"),
        ({"data": {"split": "train"}}, "data.split is train"),
        ({"data": {"choice": "first"}}, "data.choice is first, and its examination was of stratified"),
        ({"examination": {"data": {"limit": 50}}}, "images is 5, and its examination was of 50"),
        ({"examination": {"data": {"images": [0, 3]}}}, "images that somebody chose"),
    ],
)
def test_a_claim_that_says_one_thing_and_lists_another_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=f"contradicts itself: .*({reason})"):
        check_claim(merge(claim(FATES), change), "claim.json")
