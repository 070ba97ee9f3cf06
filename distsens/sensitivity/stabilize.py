"""Sensitive neuron stabilizing (SNS): keep what the most sensitive neurons say when the image turns adversarial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from distsens.errors import InputError
from distsens.sensitivity.measure import (
    PairSums,
    SensitivityMeter,
    pair_difference,
    pair_sums,
    relative,
    relative_divisor,
)
from distsens.sensitivity.select import Selection, select_neurons

Distance = Literal["l1", "l2", "cosine"]
Measure = Literal["absolute", "relative"]


@dataclass(frozen=True)
class Stabilizing:
    """What SNS is to do.

    ratio, selection : which neurons, see :func:`select_neurons`.
    distance : see :func:`stabilizing_distance`.
    measure : ``"absolute"`` takes sigma as it is; ``"relative"`` divides it by the neuron's mean absolute benign
        output, in the selection and in the term (where the divisor is a constant of the last refresh).
    decay : weight of the past in the exponential average of sensitivities, in [0, 1); 0 keeps the last window only.
    seed : of the ``"random"`` control.
    pairs : part of each batch's pairs over which the term and the sensitivities are taken, ``1/n``: every n-th pair.
        As batches are drawn at random, both are unbiased estimates of those over all pairs, at 1/n of the cost.
    """

    ratio: float = 0.1
    selection: Selection = "top"
    distance: Distance = "l1"
    measure: Measure = "absolute"
    decay: float = 0.5
    seed: int = 0
    pairs: float = 0.0625

    def __post_init__(self) -> None:
        for field, allowed in (("selection", Selection), ("distance", Distance), ("measure", Measure)):
            if (value := getattr(self, field)) not in get_args(allowed):
                raise InputError(f"stabilize.{field}", value, f"allowed are {', '.join(get_args(allowed))}")
        if not 0.0 < self.ratio <= 1.0:
            raise InputError("stabilize.ratio", self.ratio, "it must be in (0, 1]")
        if not 0.0 <= self.decay < 1.0:
            raise InputError("stabilize.decay", self.decay, "it must be in [0, 1)")
        if not (0.0 < self.pairs <= 1.0 and abs(1.0 / self.pairs - self.every) < 1e-3 * self.every):
            raise InputError("stabilize.pairs", self.pairs, "it must be 1/n of the pairs: 1, 1/2, 1/3, 1/4, ...")

    @property
    def every(self) -> int:
        """Every how many pairs one is taken."""
        return round(1.0 / self.pairs)


@dataclass(frozen=True)
class PairRows:
    """Rows of the dual pairs in one forward: the images x_i, and in the same order their twins x'_i."""

    benign: slice
    adversarial: slice


@dataclass(frozen=True)
class Reading:
    """What is kept of a layer's output: sums that measure and the distances (M,) of the pairs; either may be None."""

    sums: PairSums | None
    distance: Tensor | None


def stabilizing_distance(
    benign: Tensor, adversarial: Tensor, distance: Distance, scale: Tensor | None = None
) -> Tensor:
    """How far apart the selected neurons of one layer are on each pair: (N,).

    For outputs F, F' of shape (N, k selected neurons, positions), per pair i and as the mean over the neurons m:

    - ``"l1"``: ``||F^m - F'^m||_1 / dim``, whose mean over pairs is the sensitivity itself;
    - ``"l2"``: ``||F^m - F'^m||_2^2 / dim``, squared, so that its gradient fades smoothly towards zero;
    - ``"cosine"``: ``1 - cos(F, F')`` over all selected neurons and positions of the layer together, because a single
      unit has no direction.

    ``scale`` (k,) divides each neuron's outputs first.
    """
    wide = torch.float32 if benign.dtype in (torch.bfloat16, torch.float16) else benign.dtype
    benign, adversarial = benign.to(wide), adversarial.to(wide)
    if scale is not None:
        scale = scale.to(wide)[:, None]
        benign, adversarial = benign / scale, adversarial / scale
    match distance:
        case "l1":
            return pair_difference(benign, adversarial).mean(1)
        case "l2":
            return (benign - adversarial).square().mean((1, 2))
        case "cosine":
            return 1.0 - F.cosine_similarity(benign.flatten(1), adversarial.flatten(1), dim=1)


class Stabilizer:
    """The SNS term of a training run, and the sensitivities that choose its neurons.

    :meth:`read` is what an :class:`ActivationProbe` does with the layers of a forward over pairs. :meth:`count` adds
    what was read to the sensitivities; :meth:`refresh` sums them over the workers, averages them with the past and
    selects Omega, the same on every worker. Before the first refresh there is no Omega and :meth:`term` is None.
    """

    def __init__(self, settings: Stabilizing, neurons: Mapping[str, int], device: torch.device | str = "cpu") -> None:
        self.settings = settings
        self.selected: dict[str, Tensor] = {}
        self._neurons = dict(neurons)
        self._device = device
        self._average: dict[str, Tensor] = {}
        self._magnitude: dict[str, Tensor] = {}
        self._meter = SensitivityMeter(neurons, device)

    def pairs(self, start: int, count: int) -> slice:
        """Which of ``count`` images, the first of them at position ``start`` of the global batch, are compared.

        Positions decide, so that a batch has the same pairs however it is shared out; a small share may have none.
        """
        return slice(-start % self.settings.every, count, self.settings.every)

    def scale(self, count: int) -> float:
        """How many of the ``count`` images of a global batch there are to each that is compared: near ``1 / pairs``."""
        return count / len(range(count)[self.pairs(0, count)])

    def read(self, layer: str, outputs: Tensor, rows: PairRows, *, measure: bool = True, term: bool = True) -> Reading:
        """Read one layer's outputs (N, neurons, positions): sums for the sensitivities, distances for the term."""
        sums = pair_sums(outputs[rows.benign].detach(), outputs[rows.adversarial].detach()) if measure else None
        if not term or layer not in self.selected:
            return Reading(sums, None)
        benign, adversarial = _Selected.apply(outputs, rows, self.selected[layer])
        return Reading(sums, stabilizing_distance(benign, adversarial, self.settings.distance, self._scale(layer)))

    def count(self, readings: Mapping[str, Reading]) -> None:
        """Add the pairs of one forward to the sensitivities."""
        self._meter.add({layer: reading.sums for layer, reading in readings.items() if reading.sums is not None})

    @staticmethod
    def term(readings: Mapping[str, Reading]) -> Tensor | None:
        """Mean over layers of the layers' distances: (M,), or None before neurons are selected."""
        distances = [reading.distance for reading in readings.values() if reading.distance is not None]
        return torch.stack(distances).mean(0) if distances else None

    @torch.no_grad()
    def refresh(self) -> None:
        """Select anew from the exponential average over all workers; a collective call under a process group."""
        self._meter.reduce()
        if self._meter.pairs == 0:
            return
        decay = self.settings.decay
        for layer, window in self._meter.compute().items():
            for average, value in ((self._average, window.absolute), (self._magnitude, window.magnitude)):
                average[layer] = decay * average[layer] + (1 - decay) * value if layer in average else value
        self._meter = SensitivityMeter(self._neurons, self._device)
        self._select()

    def sensitivity(self) -> dict[str, Tensor]:
        """The averaged sensitivities that choose, absolute or relative as set: (neurons,) for every layer."""
        if self.settings.measure == "absolute":
            return dict(self._average)
        return {layer: relative(self._average[layer], self._magnitude[layer]) for layer in self._average}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, at a moment right after :meth:`refresh`."""
        return {"average": dict(self._average), "magnitude": dict(self._magnitude)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._average = {layer: value.to(self._device) for layer, value in state["average"].items()}
        self._magnitude = {layer: value.to(self._device) for layer, value in state["magnitude"].items()}
        self._meter = SensitivityMeter(self._neurons, self._device)
        self._select()

    def _select(self) -> None:
        settings = self.settings
        self.selected = select_neurons(self.sensitivity(), settings.ratio, settings.selection, seed=settings.seed)

    def _scale(self, layer: str) -> Tensor | None:
        if self.settings.measure == "absolute":
            return None
        return relative_divisor(self._magnitude[layer])[self.selected[layer]]


class _Selected(torch.autograd.Function):
    """Copies of the selected neurons of both halves: ``outputs[rows][:, neurons]`` twice.

    Plain indexing would make a gradient of the whole layer for each half, and in another memory layout than the one
    that it is added to. They are copies, because an in-place activation may overwrite the outputs.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, rows: PairRows, neurons: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(neurons)
        ctx.rows, ctx.layout = rows, torch.empty_like(outputs, device="meta")
        return outputs[rows.benign][:, neurons], outputs[rows.adversarial][:, neurons]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, None, None]:
        (neurons,) = ctx.saved_tensors
        gradient = torch.zeros_like(ctx.layout, device=benign.device)
        gradient[ctx.rows.benign].index_add_(1, neurons, benign)
        gradient[ctx.rows.adversarial].index_add_(1, neurons, adversarial)
        return gradient, None, None
