from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsens.analysis import Findings
from distsens.evaluation import wilson
from distsens.report.analysis import AnalysisSummary, Report
from distsens.report.analysis.sentences import sentences
from distsens.report.analysis.sentences_ablation import (
    ablation_sentences,
    ablation_verdicts,
    contribution_sentences,
    flip_sentences,
)
from distsens.report.analysis.words import only_least, ranked, reach
from tests.report.analysis.conftest import NAMES


def test_the_sentences_say_the_numbers_of_the_tables(findings: Findings, report: Report) -> None:
    of = sentences(findings, 0.1)
    assert list(of) == ["", *NAMES]
    assert tuple(one for some in of.values() for one in some) == report.sentences
    said = [*of[NAMES[0]], *of[""]]
    row = findings.conditions.query("model == @NAMES[0] and condition == 'pgd'").iloc[0]
    assert f"{row['accuracy']:.1%} ({row['correct']} of 60; {row['low']:.1%} to" in said[0]
    assert said[0].startswith(f"{NAMES[0]} classifies ")
    for words in ("benign value leaves", "flip half", "change of the margin", "Jaccard index", "from the least"):
        assert any(words in one for one in said), words


@pytest.mark.parametrize(("top", "verdict", "words"), [
    (0.9, "more", "sensitive neurons decide more than random ones"),
    (0.1, "less", "sensitive neurons decide less than random ones"),
    (0.5, "same", "no clear difference"),
])  # fmt: skip
def test_the_verdict_goes_by_where_random_sets_lie(findings: Findings, top: float, verdict: str, words: str) -> None:
    curves = findings.ablation_curves.copy()
    curves.loc[curves["selection"] == "top", "accuracy"] = top
    rows = curves["selection"] == "random"
    curves.loc[rows, ["accuracy", "low", "high"]] = (0.5, 0.4, 0.6)
    changed = replace(findings, ablation_curves=curves)
    assert {one["verdict"] for one in ablation_verdicts(changed, NAMES[0])} == {verdict}
    assert any(words in one for one in sentences(changed, 0.1)[NAMES[0]])


def test_of_zero_and_the_mean_it_is_said_what_is_left_and_not_who_decides(findings: Findings) -> None:
    curves = findings.ablation_curves[findings.ablation_curves["replacement"] == "zero"].copy()
    curves.loc[curves["selection"] == "top", "accuracy"] = 0.1
    curves.loc[curves["selection"] == "random", ["accuracy", "low", "high"]] = (0.5, 0.4, 0.6)
    said = sentences(replace(findings, ablation_curves=curves), 0.1)[NAMES[0]]
    assert any("fewer are right than with random sets" in one for one in said)
    assert not any("decide" in one for one in said)


def test_the_layer_that_is_spoken_of_is_said_to_be_the_extreme_one(findings: Findings) -> None:
    curves = ablated({("conv1", 0.1): 10, ("conv2", 0.1): 30, ("fc", 0.1): 0})
    widest, tally = said_of(findings, curves)
    assert widest.startswith(
        "Setting each of the 10 % most sensitive neurons (4) of conv2, where the difference is largest of 3 layers, in "
        "first <b> to its benign value leaves 75.0% (30 of 40) adversarial images right,"
    )
    assert "where 10.0% (4 of 40) are right without; 10 random sets of that size leave 25.0%" in widest
    assert "more than random ones in 1 at 10 % of the neurons; sensitive neurons decide less than" in tally
    assert tally.endswith("by chance it would be one in forty each.")


def test_beside_a_shortcut_contributions_are_of_what_passes_through_the_layer(findings: Findings) -> None:
    whole = next(one for one in sentences(findings, 0.1)[NAMES[0]] if "contribute" in one)
    assert "passes through the layer" not in whole
    beside = replace(findings, completeness=findings.completeness.assign(through=[0.05, 0.5, 1.0]))
    part = next(one for one in sentences(beside, 0.1)[NAMES[0]] if "contribute" in one)
    assert "that passes through the layer, 5% to 100% of the whole," in part


def test_models_that_do_not_differ_have_no_rank_correlation(findings: Findings) -> None:
    none = pd.DataFrame([{"absolute": float("nan"), "relative": float("nan"), "models": 3}])
    said = sentences(replace(findings, robustness=none), 0.1)[""]
    assert any("have no rank correlation" in one for one in said)
    assert not any("nan" in one for one in said)


def test_what_was_not_done_is_not_spoken_of(findings: Findings) -> None:
    nothing = {
        name: pd.DataFrame()
        for name in ("ablation_curves", "flip_curves", "completeness", "interventions", "turnover", "epochs", "history",
                     "history_correlation", "condition_agreement", "model_agreement", "robustness")
    }  # fmt: skip
    said = [one for some in sentences(replace(findings, **nothing), 0.1).values() for one in some]
    assert any("classifies" in one for one in said)
    assert not any("value leaves" in one or "flip half" in one or "After its first epoch" in one for one in said)


def test_the_summary_is_json_with_every_documented_key(findings: Findings, report: Report) -> None:
    known: dict[str, Any] = {
        "status": "finished", "message": None, "run": "r", "storage": "s", "mlflow_uri": "u", "mlflow_run_id": "i",
        "analysis": {"workers": {"num": 2}}, "data": {}, "warnings": [], "seconds": 1.0,
    }  # fmt: skip
    costs = [{"attack_seconds": 1.0, "measure_seconds": 0.1}] * 2
    summary = AnalysisSummary.of(findings, report, models=[{"name": n} for n in NAMES], costs=costs, **known)
    document = json.loads(summary.to_json())
    assert "NaN" not in summary.to_json()
    assert AnalysisSummary.__doc__ is not None
    for one in fields(AnalysisSummary):
        assert one.name in AnalysisSummary.__doc__
    model = document["models"][0]
    assert set(model) == {"name", "accuracy", "layers", "absolute", "relative", "ablation", "neurons_to_flip",
                          "contribution_gap", "attack_seconds", "measure_seconds"}  # fmt: skip
    assert list(model["accuracy"]) == ["clean", "pgd", "fgsm", "noise"]
    assert model["layers"]["0"]["neurons"] == 8
    assert document["robustness"] is None  # two models have no correlation worth the name
    metrics = summary.metrics()
    assert metrics[f"analysis/{NAMES[0]}/accuracy/pgd"] == model["accuracy"]["pgd"]["value"]
    failed = AnalysisSummary.of(None, None, models=[{"name": "a"}], costs=[], **{**known, "status": "failed"})
    assert json.loads(failed.to_json())["models"] == [{"name": "a"}]


LAYERS = ("conv1", "conv2", "fc")
IMAGES = 40


def ablated(top: Mapping[tuple[str, float], int], random: int = 10) -> pd.DataFrame:
    """Curves of 40 images: by layer and ratio how many are right with the sensitive neurons set; of random sets 10."""
    rows = []
    for (layer, ratio), right in top.items():
        for selection, count in (("top", right), ("random", random), ("bottom", 0)):
            share = count / IMAGES
            low, high = (share - 0.1, share + 0.1) if selection == "random" else wilson(count, IMAGES)
            rows.append(
                {"model": NAMES[0], "layer": layer, "replacement": "benign", "selection": selection, "ratio": ratio}
                | {"neurons": 4, "accuracy": share, "low": low, "high": high, "draws": 10, "images": IMAGES}
            )
    return pd.DataFrame(rows)


def said_of(findings: Findings, curves: pd.DataFrame) -> list[str]:
    interventions = pd.DataFrame([{"model": NAMES[0], "images": IMAGES, "right": 1.0, "attacked": 0.1, "flipped": 0.9}])
    return ablation_sentences(replace(findings, ablation_curves=curves, interventions=interventions), NAMES[0])


def test_how_many_layers_decide_is_said_of_every_ratio_and_not_of_one_alone(findings: Findings) -> None:
    curves = ablated({(layer, ratio): 30 if ratio == 0.5 else 10 for layer in LAYERS for ratio in (0.1, 0.2, 0.5)})
    (tally,) = said_of(findings, curves)
    assert "Of the 3 layers of first <b>, each by itself and on 40 images, sensitive neurons decide more" in tally
    assert "more than random ones in 3 at 50 % of the neurons; at 10 % and 20 % there is no clear difference;" in tally


@settings(max_examples=20)
@given(st.data())
def test_the_tally_is_what_counting_by_hand_gives(findings: Findings, data: st.DataObject) -> None:
    right = {(layer, ratio): data.draw(st.integers(0, 20)) for layer in LAYERS for ratio in (0.1, 0.5)}
    *single, tally = said_of(findings, ablated(right))
    for word, beyond in (("more", lambda count: count > 14), ("less", lambda count: count < 6)):
        for ratio in (0.1, 0.5):
            count = sum(beyond(right[(layer, ratio)]) for layer in LAYERS)
            part = tally.partition(f"decide {word} than random ones in ")[2].partition(" of the neurons")[0]
            assert (f"{count} at {100 * ratio:g} %" in part.replace(" and ", ", ").split(", ")) == (count > 0), tally
    differences = sorted((abs(right[(layer, 0.1)] - 10), layer) for layer in LAYERS)
    largest, second = differences[-1][0], differences[-2][0]
    assert [f"of {differences[-1][1]}, where the difference is largest of 3 layers" in one for one in single] == (
        [True] if largest > second else []
    )


@pytest.mark.parametrize("right", [0, 10])
def test_among_layers_without_a_difference_none_has_the_largest(findings: Findings, right: int) -> None:
    curves = ablated({(layer, 0.1): right for layer in LAYERS}, random=right)
    (tally,) = said_of(findings, curves)
    assert "none shows a clear difference between sensitive and random neurons, at 10 % of the neurons." in tally


def flips(images: int, half: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    """Curves of layers of 8 neurons: by layer and selection, how many neurons flip half; 0 for none."""
    rows = [
        {"model": NAMES[0], "layer": layer, "selection": selection, "neurons": neurons, "images": images}
        | {"share": float(0 < needed <= neurons), "low": 0.0, "high": 1.0, "layer_neurons": 8}
        for layer, selections in half.items()
        for selection, needed in selections.items()
        for neurons in (1, 2, 4, 8)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("images", "half", "words"),
    [
        (20, {"a": {"top": 2, "random": 8}, "b": {"top": 4, "random": 4}},
         "values of 2 of the 8 neurons of a (25 %), the most sensitive ones, flip half (10) of the 20 images that the "
         "attack flips; in random order it takes 8."),
        (21, {"a": {"top": 2, "random": 2}}, "flip half (11) of the 21 images that the attack flips; in random order "
         "it takes as many."),
        (20, {"a": {"top": 1, "random": 0}}, "in random order it takes more than all."),
        (20, {"a": {"top": 0, "random": 0}}, "no number of one layer's neurons, the most sensitive first, flips half "
         "(10) of the 20"),
        (20, {"a": {"top": 2, "random": 8}, "b": {"top": 2, "random": 4}}, None),
        (2, {"a": {"top": 1, "random": 1}}, None),
        (0, {"a": {"top": 0, "random": 0}}, None),
    ],
)  # fmt: skip
def test_half_of_the_images_is_counted_and_few_or_equal_ones_are_no_finding(
    findings: Findings, images: int, half: dict[str, dict[str, int]], words: str | None
) -> None:
    said = flip_sentences(replace(findings, flip_curves=flips(images, half)), NAMES[0])
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


def test_layers_that_differ_in_nothing_have_no_extremes(findings: Findings) -> None:
    layers, neurons = findings.layers.copy(), findings.neurons.copy()
    layers["over_noise"], neurons["over_noise"] = 2.0, 2.0
    said = sentences(replace(findings, layers=layers, neurons=neurons), 0.1)[NAMES[0]]
    assert any("changes each of 3 layers 2.0 times as much as noise of the same norm." in one for one in said)
    layers["over_noise"] = 0.0
    assert not any("as noise" in one for one in sentences(replace(findings, layers=layers), 0.1)[NAMES[0]])


def test_models_of_equal_accuracy_are_in_no_order(findings: Findings) -> None:
    conditions = findings.conditions.assign(accuracy=0.5)
    said = sentences(replace(findings, conditions=conditions), 0.1)[""]
    assert "Under pgd all 2 models classify 50.0% (30 of 60) images right." in said
    assert not any("from the most" in one for one in said)
    nothing = sentences(replace(findings, conditions=conditions.assign(accuracy=0.0)), 0.1)[""]
    assert not any("under pgd" in one.lower() for one in nothing)
    models = findings.models.assign(absolute=0.25, relative=[0.5, 0.25])
    said = sentences(replace(findings, models=models), 0.1)[""]
    assert not any("absolute sensitivity" in one for one in said)
    assert f"Mean relative sensitivity over layers, from the least: {NAMES[1]} 0.25, {NAMES[0]} 0.5." in said


def test_pairs_of_conditions_that_agree_alike_have_no_least(findings: Findings) -> None:
    table = pd.DataFrame(
        [
            {"model": NAMES[0], "first": a, "second": b, "layer": "0", "jaccard": 0.5, "chance": 0.1}
            for a, b in (("pgd", "fgsm"), ("pgd", "mim"), ("fgsm", "mim"))
        ]
    )
    said = sentences(replace(findings, condition_agreement=table), 0.1)[NAMES[0]]
    assert not any("pairs of conditions" in one for one in said)
    table.loc[1, ["jaccard", "chance"]] = (0.25, 0.125)
    said = sentences(replace(findings, condition_agreement=table), 0.1)[NAMES[0]]
    (least,) = [one for one in said if "pairs of" in one]
    assert least.startswith(f"The most sensitive 10 % of the neurons of {NAMES[0]} (")
    assert "agree least of 3 pairs of conditions between pgd and mim: Jaccard index 0.25" in least
    assert "random sets come to 0.12" in least


def test_where_nothing_passes_there_are_no_parts_of_it(findings: Findings) -> None:
    neurons = findings.neurons.copy()
    neurons.loc[neurons["layer"] == "0", "part"] = 0.0
    changed = replace(findings, neurons=neurons, completeness=findings.completeness.assign(gap=[9e9, 0.1, 0.2]))
    (said,) = contribution_sentences(changed, NAMES[0], 0.1)
    assert "each of 2 layers" in said
    assert "miss the real change by 20.0% at most" in said
    assert contribution_sentences(replace(changed, neurons=neurons.assign(part=0.0)), NAMES[0], 0.1) == []


@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), st.sampled_from([0.0, 0.1, 0.2, 0.3]), min_size=1))
def test_an_extreme_is_named_where_one_alone_has_it(values: dict[str, float]) -> None:
    smallest = [key for key, value in values.items() if value == min(values.values())]
    assert only_least(values) == (smallest[0] if len(smallest) == 1 and len(values) > 1 else None)
    said = ranked(values, "{:.1f}", most_first=True)
    assert (said is None) == (len(set(values.values())) == 1)
    if said is not None:
        shares = [float(part.rpartition(" ")[2]) for part in said.split(", ") if part[-1].isdigit()]
        assert shares == sorted(set(values.values()), reverse=True)
    assert reach(values, "{:.1f}").count("(") <= 2
