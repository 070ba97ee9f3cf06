from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pandas as pd
import pytest

from distsens.analysis import Findings
from distsens.report.analysis import AnalysisSummary, Report
from distsens.report.analysis.sentences import ablation_verdicts, sentences
from tests.report.analysis.conftest import NAMES


def test_the_sentences_say_the_numbers_of_the_tables(findings: Findings, report: Report) -> None:
    of = sentences(findings)
    assert list(of) == ["", *NAMES]
    assert tuple(one for some in of.values() for one in some) == report.sentences
    said = [*of[NAMES[0]], *of[""]]
    attacked = findings.conditions.query("model == @NAMES[0] and condition == 'pgd'")["accuracy"].iloc[0]
    assert f"{attacked:.1%}" in said[0]
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
    assert any(words in one for one in sentences(changed)[NAMES[0]])


def test_of_zero_and_the_mean_it_is_said_what_is_left_and_not_who_decides(findings: Findings) -> None:
    curves = findings.ablation_curves[findings.ablation_curves["replacement"] == "zero"].copy()
    curves.loc[curves["selection"] == "top", "accuracy"] = 0.1
    curves.loc[curves["selection"] == "random", ["accuracy", "low", "high"]] = (0.5, 0.4, 0.6)
    said = sentences(replace(findings, ablation_curves=curves))[NAMES[0]]
    assert any("fewer are right than with random sets" in one for one in said)
    assert not any("decide" in one for one in said)


def test_the_layer_that_is_spoken_of_is_said_to_be_the_extreme_one(findings: Findings) -> None:
    said = sentences(findings)[NAMES[0]]
    assert any("where the difference is largest" in one for one in said)
    assert any("by chance it would be one in forty each" in one for one in said)


def test_beside_a_shortcut_contributions_are_of_what_passes_through_the_layer(findings: Findings) -> None:
    whole = next(one for one in sentences(findings)[NAMES[0]] if "contribute" in one)
    assert "passes through the layer" not in whole
    beside = replace(findings, completeness=findings.completeness.assign(through=[0.05, 0.5, 1.0]))
    part = next(one for one in sentences(beside)[NAMES[0]] if "contribute" in one)
    assert "that passes through the layer, 5% to 100% of the whole;" in part


def test_models_that_do_not_differ_have_no_rank_correlation(findings: Findings) -> None:
    none = pd.DataFrame([{"absolute": float("nan"), "relative": float("nan"), "models": 3}])
    said = sentences(replace(findings, robustness=none))[""]
    assert any("have no rank correlation" in one for one in said)
    assert not any("nan" in one for one in said)


def test_what_was_not_done_is_not_spoken_of(findings: Findings) -> None:
    nothing = {
        name: pd.DataFrame()
        for name in ("ablation_curves", "flip_curves", "completeness", "interventions", "turnover", "epochs", "history",
                     "history_correlation", "condition_agreement", "model_agreement", "robustness")
    }  # fmt: skip
    said = [one for some in sentences(replace(findings, **nothing)).values() for one in some]
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
