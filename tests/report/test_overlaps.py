"""No word of any figure lies on another or is cut, however long names are and however many things are shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import nn

from distsens.errors import printable
from distsens.evaluation import Proportion, proportion
from distsens.models import torchvision_model
from distsens.report import evaluation_figure, training_figure
from distsens.report.analysis.figures_ablation import ablation_plates
from distsens.report.analysis.figures_models import model_plates
from distsens.report.analysis.figures_time import agreement_plates, time_plates
from distsens.report.style import Plate, shorts, titles
from distsens.report.sweep import RungState, TrialState, count
from distsens.report.sweep.figures import sweep_plates
from distsens.search import Choice, Grid, Integers, LogUniform, Uniform
from distsens.training import EpochRecord
from tests.report.analysis.constructed import constructed
from tests.report.overlaps import faults_of
from tests.report.test_evaluation import ledger, summary

LAYERS = [f"network.layer{n // 4 + 1}.{n % 4}.conv{n % 2 + 1}" for n in range(8)] + ["network.head.projection.output"]
CONDITIONS = ["pgd", "cw_pgd", "fast_fgsm", "bim", "mim", "step_ll", "pgd eps 0.01569", "pgd eps 0.06275"]
CLASSES = [f"a class with the number {number} of many" for number in range(24)]
MODELS = ["a-rather-long-name-of-a-model-20260102", "another-long-name-of-a-model-with-sns", "third"]


@pytest.fixture(scope="module")
def plates() -> dict[str, Plate]:
    findings = constructed(MODELS, LAYERS, CONDITIONS, CLASSES, 30)
    own = [*ablation_plates(findings, MODELS[0]), *time_plates(findings, MODELS[0])]
    return {plate.name: plate for plate in [*model_plates(findings), *own, *agreement_plates(findings)]}


@pytest.mark.parametrize("name", [
    "accuracy", "layers", "distributions", "noise", "classes", "robustness", "ablation-zero-1", "flips-1",
    "contributions-1", "epochs-1", "jaccard-1", "turnover-1", "training-1", "conditions", "models",
])  # fmt: skip
def test_figures_of_an_analysis(plates: dict[str, Plate], name: str) -> None:
    assert faults_of(plates[name].figure) == []


def test_a_legend_of_many_models_is_not_cut() -> None:
    findings = constructed([f"seed-{n}-of-a-recipe-with-a-name" for n in range(9)], ["conv1", "fc"], ["pgd"], ["a"], 2)
    for plate in model_plates(findings):
        if plate.name in ("accuracy", "robustness"):
            assert faults_of(plate.figure) == []


def history(epochs: int, layers: list[str]) -> list[EpochRecord]:
    sensitivity = {f"sensitivity/{m}/{layer}": 0.1 for m in ("absolute", "relative") for layer in layers}
    accuracies = {f"validation/{name}_accuracy": 0.5 for name in ("clean", "robust", "training_attack")}
    return [EpochRecord(epoch, {**accuracies, **sensitivity}) for epoch in range(epochs)]


@pytest.mark.parametrize(("epochs", "best"), [(3, 0), (3, 1), (3, 2), (200, 100), (1, 0)])
def test_the_figure_of_a_training(epochs: int, best: int) -> None:
    assert faults_of(training_figure(history(epochs, LAYERS), best, "a run with a long name " * 9)) == []


@pytest.mark.parametrize("classes", [2, 12, 100])
def test_the_figure_of_an_evaluation(classes: int) -> None:
    some = proportion(Proportion(5, 10))
    attacks = ("pgd", "apgd-ce", "apgd-t", "fab-t", "square", "apgd-dlr-eot", "transfer", "adaptive")
    found = replace(
        summary(ledger()),
        classes={f"{n} of the many things on images": {"clean": some, "robust": some} for n in range(classes)},
        after_attack=dict.fromkeys(attacks, some),
        corruption_errors={f"family_of_noise_{n}": [0.1] * 5 for n in range(15)},
        curve=[{"eps": n / 255, "robust": some} for n in (1, 2, 4, 8, 16)],
    )
    assert faults_of(evaluation_figure(replace(found, model={**found.model, "name": "a name $x$ " * 20}))) == []


SPACE: dict[str, Any] = {
    "stabilize.weight": LogUniform(1e-6, 100.0),
    "training.lr": Uniform(0.00001, 0.00045),
    "training.epochs": Integers(10, 10_000),
    "seed": Integers(1, 5),
    "stabilize.layers": Choice((("auto",), ("network.conv*",), ("network.fc1", "network.layer4.1.conv2"))),
    "objective.name": Grid(("standard", "pgd_at", "trades", "mart", "free_at", "fast_at", "alp", "nat")),
}


def _value(one: Any, number: int) -> Any:
    return one.values[number % 3] if isinstance(one, Choice | Grid) else type(one.low)(one.low * (1 + number))


@pytest.mark.parametrize("fields", [tuple(SPACE), ("stabilize.weight", "objective.name"), ("training.lr", "seed")])
def test_the_figures_of_a_sweep(fields: tuple[str, ...]) -> None:
    space = {field: SPACE[field] for field in fields}
    trials = [
        TrialState(
            f"t{n}", n,
            {field: _value(one, n) for field, one in space.items()},
            status="finished", rungs={1: RungState(1, 0.9 + 0.001 * n, 0.5, 0.5 + 0.01 * n)},
        )
        for n in range(4)
    ]  # fmt: skip
    for plate in sweep_plates(trials, count(trials, space), space, 1, "t1"):
        assert faults_of(plate.figure) == [], plate.name


def test_what_overlaps_and_what_is_cut_is_found() -> None:
    figure = Figure(figsize=(4, 3))
    figure.text(0.5, 0.5, "one")
    figure.text(0.52, 0.5, "another")
    figure.text(0.95, 0.1, "much too long for its place")
    figure.text(0.1, 0.8, "slanting", rotation=45)
    figure.text(0.2, 0.8, "beside it", rotation=45)
    assert faults_of(figure) == ["cut: 'much too long for its place'", "overlap: 'one' and 'another'"]


def test_names_that_are_cut_remain_different() -> None:
    names = [f"class number {n:02d} of a hundred classes" for n in range(100)]
    assert len(set(shorts(names))) == 100
    assert shorts(["conv1", "network.fc"]) == ["conv1", "fc"]


def test_each_of_the_layers_of_a_densenet_has_a_label_of_its_own() -> None:
    network = torchvision_model("densenet121", shape=(3, 32, 32), classes=10)
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 121
    for labels in (shorts(layers), titles(layers, 18)):
        assert len(set(labels)) == 121
    assert max(len(line) for label in titles(layers, 18) for line in label.split("\n")) <= 18


@given(st.lists(st.text(max_size=60), max_size=30), st.integers(4, 40))
def test_labels_differ_where_names_do(names: list[str], most: int) -> None:
    labels = shorts(names, most)
    whole = [printable(name) for name in names]  # different names of codes may be printed alike
    assert len(labels) == len(names)
    assert len(set(zip(labels, whole, strict=True))) == len(set(labels)) == len(set(whole))
