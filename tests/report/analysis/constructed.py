"""Findings of nothing, with names and numbers that are hard to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd

from distsens.analysis import Findings
from distsens.analysis.tables import layer_table

SELECTIONS = ("top", "random", "bottom")


def rows(make: Callable[..., dict[str, Any]], **names: Sequence[Any]) -> pd.DataFrame:
    """A row for every combination."""
    found = [dict(zip(names, values, strict=True)) for values in product(*names.values())]
    return pd.DataFrame([one | make(**one) for one in found])


def constructed(
    models: Sequence[str], layers: Sequence[str], conditions: Sequence[str], classes: Sequence[str], epochs: int
) -> Findings:
    """Everything that a report can hold; interventions and a history of the first model."""
    draw = np.random.default_rng(0).random
    first = models[:1]
    spread = {"low": 0.1, "high": 0.9, "images": 200}
    neurons = rows(
        lambda **one: {"absolute": 10.0 ** (4 * draw() - 4), "noise": 10.0 ** (5 * draw() - 5)}
        | {"rank": one["neuron"] + 1, "sensitive": one["neuron"] < 1, "contribution": 0.1, "part": 1 / 6},
        model=models, condition=conditions, layer=layers, neuron=range(6),
    ).assign(magnitude=1.0, output=0.5)  # fmt: skip
    neurons = neurons.assign(
        relative=2 * neurons["absolute"],
        noise_relative=neurons["noise"],
        over_noise=neurons["absolute"] / neurons["noise"],
    )
    pairs = [
        {
            "model": m,
            "first": a,
            "second": b,
            "layer": layer,
            "jaccard": draw(),
            "chance": 0.1,
            "rank_correlation": -draw(),
        }
        for m in models
        for a, b in combinations(conditions, 2)
        for layer in layers
    ]
    return Findings(
        conditions=rows(
            lambda **_: {"accuracy": draw(), "low": 0.0, "high": 1.0, "images": 1000},
            model=models, condition=["clean", *conditions, "noise"],
        ),
        neurons=neurons,
        layers=layer_table(neurons),
        classes=rows(lambda **_: {"absolute": draw()}, model=models, label=classes, layer=layers, neuron=[0]),
        models=rows(lambda **_: {"absolute": draw(), "relative": draw(), "robust": draw()}, model=models),
        robustness=pd.DataFrame(),
        ablations=pd.DataFrame(),
        ablation_curves=rows(
            lambda **one: spread | {"neurons": int(1000 * one["ratio"]), "accuracy": draw(), "draws": 10},
            model=first, layer=layers, replacement=["zero"], selection=SELECTIONS, ratio=[0.1, 0.5],
        ),
        patching=pd.DataFrame(),
        flip_curves=rows(
            lambda **_: spread | {"share": draw(), "layer_neurons": 2048},
            model=first, layer=layers, selection=SELECTIONS, neurons=[2**power for power in range(12)],
        ),
        completeness=rows(lambda **_: {"gap": 0.1, "through": 0.5}, model=first, layer=layers),
        interventions=rows(lambda **_: {"images": 200, "right": 0.9, "attacked": 0.4, "flipped": 0.5}, model=first),
        condition_agreement=pd.DataFrame(pairs),
        model_agreement=rows(
            lambda **_: {"first": models[0], "jaccard": draw(), "chance": 0.1, "correlation": 0.5},
            second=models[1:], layer=layers,
        ),
        history=rows(
            lambda **one: {"absolute": draw(), "relative": draw(), "selected": one["neuron"] < 2},
            model=first, epoch=range(epochs), layer=layers, neuron=range(6),
        ),
        epochs=rows(lambda **_: {"robust": draw()}, model=first, epoch=range(epochs)),
        turnover=rows(
            lambda **_: {"born": 1, "died": 1, "kept": 1, "chance": 0.1, "since_last": draw()},
            model=first, layer=layers, epoch=range(1, epochs),
        ),
        history_correlation=pd.DataFrame(),
    )  # fmt: skip
