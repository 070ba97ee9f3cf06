"""Findings of two small networks of the digits, with everything that a report can hold."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from distsens.analysis import (
    Analysis,
    Findings,
    History,
    InterventionPlan,
    MeasurementPlan,
    ModelFindings,
    correlate,
    findings_of,
    intervene,
    look,
    match_all,
    measure_images,
    neuron_table,
    numbers_in,
    sensitivities,
    wanted_sights,
)
from distsens.attacks import attack_named
from distsens.report.analysis import Report, build_report
from tests.analysis.digit_pairs import small_digits, trained

CLASSES = tuple("0123456789")
LAYERS = ("0", "2", "5")
NAMES = ("first <b>", "second $x$")


def history(seed: int) -> History:
    generator = torch.Generator().manual_seed(seed)
    rows = [
        {"epoch": epoch, "layer": layer, "neuron": m, "absolute": 0.1, "relative": 0.2, "magnitude": 1.0}
        for epoch in range(4)
        for layer in LAYERS
        for m in range(6)
    ]
    table = pd.DataFrame(rows)
    table["relative"] = torch.rand(len(rows), generator=generator, dtype=torch.float64).numpy()
    table["selected"] = table.groupby(["epoch", "layer"])["relative"].rank(ascending=False) <= 2
    return History(table, pd.DataFrame({"epoch": range(4), "clean": 0.9, "robust": [0.1, 0.3, 0.5, 0.4]}))


def found(name: str, seed: int) -> ModelFindings:
    """The first with everything, the second, for the sake of time, measured alone."""
    small, model = small_digits(), trained(seed)
    attacks = {"pgd": small.attack, "fgsm": attack_named("fgsm", small.attack.threat)}
    plan = MeasurementPlan(attacks, "linf", LAYERS, 10, batch_size=30, kept_images=2)
    numbers = torch.arange(60)
    measured, twins = measure_images(model, small.images, small.labels, numbers, plan)
    if seed:
        return ModelFindings(name, measured)
    values, means = sensitivities(measured, "absolute")
    intervention = InterventionPlan(values, means, ("benign", "zero"), (0.1, 0.5), draws=3, steps=4)
    rows = slice(0, 30)
    intervened = intervene(model, small.images[rows], twins[rows], small.labels[rows], intervention)
    neurons = neuron_table(measured.meters, 0.1)
    first = neurons[neurons["condition"] == "pgd"]
    wanted = wanted_sights(first, measured.changed, measured.activated, 1, 2)
    seen = torch.tensor(numbers_in(wanted))
    sights = look(model, small.images[seen], twins[seen], small.labels[seen], seen, wanted, 16)
    return ModelFindings(name, measured, intervened, history(seed), sights)


@pytest.fixture(scope="session")
def models() -> list[ModelFindings]:
    return [found(name, seed) for seed, name in enumerate(NAMES)]


@pytest.fixture(scope="session")
def findings(models: list[ModelFindings]) -> Findings:
    layers = {layer: layer for layer in LAYERS}
    matches = match_all(correlate(trained(0), trained(1), layers, small_digits().images))
    return findings_of(models, CLASSES, 0.1, "absolute", {NAMES[1]: matches})


@pytest.fixture(scope="session")
def analysis() -> Analysis:
    return Analysis.parse({"threat": {"norm": "linf", "eps": 0.2}, "data": {"name": "digits"}})


@pytest.fixture(scope="session")
def report(findings: Findings, models: list[ModelFindings], analysis: Analysis) -> Report:
    sights = {one.name: one.sights for one in models}
    return build_report(
        findings, sights, analysis=analysis, classes=CLASSES, images=60, title="a <b> & $x$", warnings=["beware <i>"]
    )
