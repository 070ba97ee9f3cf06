from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from distsens.evaluation import Check, Ledger, Proportion, Verification, proportion
from distsens.evaluation.ledger import broken_column, corruption_column, curve_column, evaluations_column
from distsens.report import (
    EvaluationSummary,
    EvaluationView,
    evaluation_figure,
    show_evaluation,
    show_models,
    summary_document,
)


def ledger(standing: int = 6) -> Ledger:
    """Ten images: one wrong as it is, some that stand, the others broken by pgd."""
    broken_by = ["clean", *[None] * standing, *["pgd"] * (9 - standing)]
    broken = [None, *[False] * standing, *[True] * (9 - standing)]
    return Ledger(
        pd.DataFrame(
            {
                "image": pd.array(range(10), dtype="Int64"),
                "label": pd.array([number % 2 for number in range(10)], dtype="Int64"),
                "prediction": pd.array([1, *[number % 2 for number in range(1, 10)]], dtype="Int64"),
                "broken_by": pd.array(broken_by, dtype="string"),
                "violations": pd.array([0] * 10, dtype="Int64"),
                broken_column("pgd"): pd.array(broken, dtype="boolean"),
                evaluations_column("pgd"): pd.array([0, *[1000] * 9], dtype="Int64"),
                curve_column(0.1): pd.array([False] + [True] * 9, dtype="boolean"),
                curve_column(0.3): pd.array([False] + [flag is False for flag in broken[1:]], dtype="boolean"),
                corruption_column("fog", 1): pd.array([True] * 8 + [False] * 2, dtype="boolean"),
            }
        )
    )


def summary(found: Ledger | None, **changes: Any) -> EvaluationSummary:
    known: dict[str, Any] = {
        "status": "finished",
        "message": None,
        "run": "evaluate-net",
        "storage": "file:///runs/evaluate-net",
        "mlflow_uri": "sqlite:////runs/mlflow.db",
        "mlflow_run_id": "abc",
        "examination": {"threat": {"norm": "linf", "eps": 0.3}, "workers": {"num": 2}},
        "model": {"name": "net", "address": "net.pt", "run": None, "sha256": "0" * 64},
        "data": {"name": "two", "split": "test", "images": 10, "digest": "1" * 64},
        "images": 10,
        "baseline": {"fog": [0.4]},
        "classes": ("even", "odd"),
        "checks": [Check("zero gradient", False, {"vanished": 0.5}, "The gradient vanishes.")],
        "warnings": ["the model is random"],
        "commit": "c0ffee",
        "seconds": 50.0,
        "seconds_now": 20.0,
        "judged_now": 10,
        **changes,
    }
    return EvaluationSummary.of(ledger=found, **known)


def shown(show: Any, *arguments: Any) -> str:
    console = Console(file=io.StringIO(), width=120)
    show(console, *arguments)
    output: str = console.file.getvalue()  # type: ignore[attr-defined]
    return output


def test_the_table_has_accuracies_intervals_checks_and_warnings() -> None:
    output = shown(show_evaluation, summary(ledger()))
    for text in (
        "90.00%",
        "60.00%",
        "31.27% to 83.18%",
        "9,000",
        "SUSPECT zero gradient",
        "the model is random",
        "fog",
    ):
        assert text in output, output


@pytest.mark.parametrize(
    ("robust", "named"),
    [
        ((1, 5, 2), ["0 10.0% (1 of 10)", "2 20.0% (2 of 10)"]),
        ((3, 1, 2, 4, 6, 5, 9), [f"{n} {k}0.0% ({k} of 10)" for k, n in ((1, 1), (2, 2), (3, 0), (4, 3), (5, 5))]),
        ((1, 2, 2, 2, 2, 2, 2), ["0 10.0% (1 of 10)"]),
        ((2, 2, 2), []),
        ((0, 0), []),
        ((4,), []),
    ],
)
def test_the_least_robust_classes_are_counted_and_never_chosen_among_equal_ones(
    robust: tuple[int, ...], named: list[str]
) -> None:
    classes = {str(n): {"robust": proportion(Proportion(k, 10)), "clean": {}} for n, k in enumerate(robust)}
    output = shown(show_evaluation, replace(summary(ledger()), classes=classes))
    assert ("least robust classes" in output) == bool(named)
    assert not named or f"least robust classes: {', '.join(named)}\n" in output


def test_the_summary_is_json_and_counts_the_ledger() -> None:
    document = json.loads(json.dumps(summary(ledger()).to_dict()))
    assert document["robust_accuracy"] == pytest.approx(
        {"value": 0.6, "low": 0.3127, "high": 0.8318, "count": 6, "images": 10}, abs=1e-4
    )
    assert document["classes"]["odd"]["clean"]["value"] == 1.0
    assert document["images_per_second"] == 0.5
    assert document["mean_corruption_error"] == pytest.approx(0.5)
    assert set(document) == set(EvaluationSummary.__dataclass_fields__)


def test_images_without_finite_logits_are_counted_in_table_summary_and_metrics() -> None:
    found = summary(Ledger(ledger().rows.assign(not_finite=pd.array([True, *[False] * 8, True], dtype="boolean"))))
    assert found.to_dict()["not_finite"] == 2
    assert found.metrics()["evaluation/not_finite"] == 2.0
    assert "2 images have logits that are NaN or infinite, which counts as misclassified\n" in shown(
        show_evaluation, found
    )
    assert summary(ledger()).not_finite == 0


def test_metrics_are_finite_numbers_under_names_that_mlflow_takes() -> None:
    metrics = summary(ledger()).metrics()
    assert metrics["evaluation/robust_accuracy"] == 0.6
    assert metrics["evaluation/robust_accuracy_low"] < 0.6 < metrics["evaluation/robust_accuracy_high"]
    assert metrics["evaluation/eps/0.1"] == 0.9
    assert metrics["evaluation/after/pgd"] == 0.6


def test_an_evaluation_without_a_finished_shard_has_a_summary() -> None:
    found = summary(None, status="failed", message="no room", judged_now=0)
    assert (found.judged, found.robust_accuracy) == (0, None)
    assert shown(show_evaluation, found) == ""


def test_the_figure_has_a_panel_for_each_thing_that_was_measured() -> None:
    figure = evaluation_figure(summary(ledger()))
    assert [axes.get_title() for axes in figure.axes] == [
        "accuracy after each attack in turn",
        "robust accuracy by class (dots: clean)",
        "robust accuracy by radius",
        "common corruptions",
    ]


def trained(seed: int, recipe: str = "r" * 64, selected: str = "best", address: str = "runs/run") -> dict[str, Any]:
    training = {"recipe": recipe, "seed": seed, "selected": selected}
    return {"name": "run", "address": address, "run": "run", "training": training}


FILE = {"name": "net", "address": "net.pt", "run": None, "training": None}


@pytest.mark.parametrize(
    "models",
    [
        [FILE, {**FILE, "address": "other.pt"}],
        [trained(0), FILE],
        [trained(0), trained(1, recipe="s" * 64)],
        [trained(0), trained(0)],
        [trained(0), trained(1), trained(1)],
        [trained(0), trained(0, selected="last")],
        [trained(0), trained(1, selected="3")],
    ],
)
def test_models_that_are_not_seeds_of_one_recipe_stand_side_by_side_without_a_mean(
    models: list[dict[str, Any]],
) -> None:
    found = [summary(ledger(standing), model=model) for standing, model in zip((3, 5, 7), models, strict=False)]
    output = shown(show_models, found)
    assert all(f"{share}.00%" in output for share in (30, 50, 70)[: len(models)])
    assert "deviation" not in output
    assert "mean" not in output
    assert summary_document(found, len(found))["over_models"] == {}


def test_seeds_that_were_judged_by_other_attacks_or_images_have_no_mean() -> None:
    first, second = (summary(ledger(standing), model=trained(standing)) for standing in (5, 7))
    assert summary_document([first, second], 2)["over_models"]
    places = {**second.examination, "workers": {"num": 5}, "shard": 3, "model": {"address": "elsewhere"}}
    assert summary_document([first, replace(second, examination=places)], 2)["over_models"]
    for change in (
        {"examination": {**second.examination, "threat": {"norm": "linf", "eps": 0.1}}},
        {"data": {**second.data, "images": 5}},
        {"data": {**second.data, "name": "three"}},
    ):
        assert summary_document([first, replace(second, **change)], 2)["over_models"] == {}


def test_several_seeds_have_a_mean_and_a_spread_and_one_model_has_none() -> None:
    assert shown(show_models, [summary(ledger())]) == ""
    seeds = [
        summary(ledger(standing), model=trained(standing, address=f"seed-{standing}/net")) for standing in (5, 6, 7)
    ]
    output = shown(show_models, seeds)
    assert "robust accuracy over 3 seeds: 60.00%, standard deviation 10.00%" in output
    assert "net" in output
    document = json.loads(json.dumps(summary_document(seeds, 3)))
    assert [one["model"]["address"] for one in document["models"]] == [
        "seed-5/net",
        "seed-6/net",
        "seed-7/net",
    ]
    assert set(document["over_models"]) == {"clean_accuracy", "robust_accuracy"}
    robust = document["over_models"]["robust_accuracy"]
    assert (robust["mean"], robust["std"]) == (pytest.approx(0.6), pytest.approx(0.1))
    assert robust["low"] < 0.6 < robust["high"]


def test_the_summary_of_one_model_is_its_own_and_one_that_failed_leaves_no_mean() -> None:
    whole = summary(ledger())
    assert summary_document([whole], 1) == whole.to_dict()
    other = summary(None, status="failed", judged_now=0, model={"name": "b", "address": "b.pt", "run": None})
    broken = summary_document([whole, other], 3)
    assert (len(broken["models"]), broken["over_models"]) == (2, {})
    assert summary_document([whole], 3)["over_models"] == {}


def test_a_verified_claim_has_its_verdict_in_the_summary_also_where_nothing_was_judged() -> None:
    held = summary_document([summary(ledger())], 1, Verification(10, 0, 2, ()))
    assert held["robust_accuracy"]["value"] == 0.6
    assert (held["verification"]["holds"], held["verification"]["underclaimed"]) == (True, 2)
    refuted = summary_document([], 1, Verification(0, 0, 0, ("the model is another",)))
    assert set(refuted) == {"verification"}
    assert refuted["verification"]["sentence"] == "the claim does not hold: the model is another"


def test_two_checkpoints_of_a_run_stand_side_by_side_without_a_mean() -> None:
    pair = [
        summary(ledger(standing), model=trained(0, selected=which, address=f"runs/run#{which}"))
        for standing, which in ((7, "best"), (5, "last"))
    ]
    output = shown(show_models, pair)
    best, last = (next(line for line in output.splitlines() if f"run#{which}" in line) for which in ("best", "last"))
    assert "70.00%" in best
    assert "50.00%" in last
    assert "standard deviation" not in output
    assert summary_document(pair, 2)["over_models"] == {}


def test_a_log_gets_a_line_at_the_end_with_accuracy_and_interval() -> None:
    console = Console(file=io.StringIO(), width=120)
    with EvaluationView(console) as view:
        view.begin(10, 0)
        view.judged(None)
        view.judged(ledger())
    output: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "judging 10 of 10 images" in output
    assert "10 of 10 images  robust 60.0% (31.3% to 83.2%)" in output
