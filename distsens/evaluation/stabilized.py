"""What an attacker who knows of SNS knows of a model: its stabilized neurons, and the term that held them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distsens.sensitivity import (
    LayerSensitivity,
    Stabilizing,
    relative_divisor,
    select_neurons,
    stabilizing_distance,
)


@dataclass(frozen=True)
class StabilizedNeurons:
    """The neurons that SNS selects on dual pairs, and its term over any others.

    settings : of the training; its ratio, selection, distance, measure and seed count here.
    chosen : Omega_l for every layer, indices of neurons.
    scales : what divides the chosen neurons' outputs, for every layer; empty unless the measure is relative.
    """

    settings: Stabilizing
    chosen: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]

    @classmethod
    def of(cls, settings: Stabilizing, sensitivity: Mapping[str, LayerSensitivity]) -> StabilizedNeurons:
        """Select as the training does, from sensitivities that were measured elsewhere."""
        is_relative = settings.measure == "relative"
        values = {layer: one.relative if is_relative else one.absolute for layer, one in sensitivity.items()}
        chosen = select_neurons(values, settings.ratio, settings.selection, seed=settings.seed)
        scales = {
            layer: relative_divisor(one.magnitude)[chosen[layer]] for layer, one in sensitivity.items() if is_relative
        }
        return cls(settings, chosen, scales)

    def read(self, layer: str, outputs: Tensor) -> Tensor:
        """The chosen neurons of a layer's outputs (N, neurons, positions), as a copy: for an ActivationProbe."""
        return outputs.index_select(1, self.chosen[layer])

    def term(self, benign: Mapping[str, Tensor], adversarial: Mapping[str, Tensor]) -> Tensor:
        """The stabilizing term of pairs, given what :meth:`read` kept of both: the mean over layers, (N,)."""
        distance = self.settings.distance
        return torch.stack(
            [
                stabilizing_distance(benign[layer], adversarial[layer], distance, self.scales.get(layer))
                for layer in self.chosen
            ]
        ).mean(0)
