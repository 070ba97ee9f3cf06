from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from distsens.evaluation.stabilized import StabilizedNeurons
from distsens.sensitivity import (
    ActivationProbe,
    Distance,
    LayerSensitivity,
    Measure,
    PairRows,
    Selection,
    SensitivityMeter,
    Stabilizer,
    Stabilizing,
    neuron_counts,
    split_pairs,
)

COUNT = 7
ROWS = PairRows(slice(0, COUNT), slice(COUNT, 2 * COUNT))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 9, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 11), nn.Tanh(), nn.Linear(11, 4)
        )


def sensitivity_of_pairs(probe: ActivationProbe[Tensor]) -> dict[str, LayerSensitivity]:
    meter = SensitivityMeter()
    meter.update(*split_pairs(probe.outputs))
    return meter.compute()


def pairs(seed: int) -> Tensor:
    return torch.rand(2 * COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("measure", get_args(Measure))
@pytest.mark.parametrize("distance", get_args(Distance))
@pytest.mark.parametrize("selection", get_args(Selection))
def test_neurons_and_term_are_those_of_the_training(selection: Selection, distance: Distance, measure: Measure) -> None:
    model = network()
    settings = Stabilizing(0.3, selection, distance, measure, seed=4, pairs=1.0)
    stabilizer = Stabilizer(settings, neuron_counts(model, "auto", pairs(0)[:1]))
    with ActivationProbe(model, "auto", lambda layer, outputs: stabilizer.read(layer, outputs, ROWS)) as readings:
        model(pairs(1))
    stabilizer.count(readings.outputs)
    stabilizer.refresh()
    with readings:
        model(pairs(2))
    term = stabilizer.term(readings.outputs)

    with ActivationProbe(model, "auto") as probe:
        model(pairs(1))
    neurons = StabilizedNeurons.of(settings, sensitivity_of_pairs(probe))
    with ActivationProbe(model, "auto", neurons.read) as chosen:
        model(pairs(2)[:COUNT])
        benign = chosen.outputs
        model(pairs(2)[COUNT:])
    assert {layer: some.tolist() for layer, some in neurons.chosen.items()} == {
        layer: some.tolist() for layer, some in stabilizer.selected.items()
    }
    torch.testing.assert_close(neurons.term(benign, chosen.outputs), term, rtol=1e-5, atol=1e-7)


def test_what_is_read_is_a_copy_that_later_layers_cannot_overwrite() -> None:
    model = network()
    with ActivationProbe(model, "auto") as probe:
        model(pairs(1))
    settings = dataclasses.replace(Stabilizing(), selection="all")
    neurons = StabilizedNeurons.of(settings, sensitivity_of_pairs(probe))
    with ActivationProbe(model, "0", neurons.read) as chosen:
        model(pairs(1))
    assert chosen.outputs["0"].min() < 0.0
