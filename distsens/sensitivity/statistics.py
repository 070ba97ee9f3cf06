"""Sensitivity with its standard error, over all pairs and within each class, summed exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distsens.sensitivity.measure import pair_difference, relative, relative_divisor

# Of differences, their squares, magnitudes, their squares, the products of both, and outputs.
_SUMS = 6


@dataclass(frozen=True)
class PairValues:
    """What pairs say of one layer's neurons, (N, neurons) each, entry (i, m) of pair i and neuron m.

    difference : ``||F^m(x_i) - F^m(x'_i)||_1 / dim``.
    magnitude : ``||F^m(x_i)||_1 / dim``.
    output : the mean of ``F^m(x_i)`` over its positions, with its sign.
    """

    difference: Tensor
    magnitude: Tensor
    output: Tensor


@torch.no_grad()
def pair_values(benign: Tensor, *adversarial: Tensor) -> list[PairValues]:
    """Values of one layer's outputs (N, neurons, positions) on benign images and on each of several twins of them.

    They are float32 or wider; what is said of the benign images is shared.
    """
    wide = benign.float() if benign.dtype in (torch.bfloat16, torch.float16) else benign
    magnitude, output = wide.abs().mean(2), wide.mean(2)
    return [PairValues(pair_difference(benign, one), magnitude, output) for one in adversarial]


@dataclass(frozen=True)
class NeuronStatistics:
    """The neurons of one layer: entry m of each (neurons,) float64 tensor is neuron m.

    absolute, relative, magnitude : as in :class:`LayerSensitivity`.
    absolute_error : standard error of ``absolute``, ``s / sqrt(N)`` for s the standard deviation of the pairs'
        differences (N - 1 in the denominator); NaN for a single pair.
    relative_error : standard error of ``relative``, a ratio of two means over the same pairs, by the delta method:
        ``sqrt(sum_i (d_i - r a_i)^2 / (N - 1) / N) / mean(a)`` for differences d, magnitudes a and r = relative. Where
        the floor of :func:`relative_divisor` divides instead, it is taken for a constant.
    output : mean benign output, with its sign.
    """

    absolute: Tensor
    absolute_error: Tensor
    relative: Tensor
    relative_error: Tensor
    magnitude: Tensor
    output: Tensor


class StatisticsMeter:
    """Streaming :class:`NeuronStatistics`, also of each class by itself.

    It holds six float64 sums for every neuron, and as many for every class and neuron, so its memory does not grow with
    the pairs. Meters of disjoint pairs are merged by addition: the result does not depend on how the pairs were batched
    or sharded, up to rounding in float64, and the same shards merged in the same order give the same bits.

    Parameters
    ----------
    classes : number of classes that are summed by themselves, whose labels are 0 to classes - 1; 0 for none.
    device : where the sums are held.
    """

    def __init__(self, classes: int = 0, device: torch.device | str = "cpu") -> None:
        self.pairs = 0
        self.counts = torch.zeros(classes, dtype=torch.int64, device=device)
        self._sums: dict[str, Tensor] = {}
        self._of_classes: dict[str, Tensor] = {}

    @property
    def classes(self) -> int:
        """How many classes are summed by themselves."""
        return len(self.counts)

    @torch.no_grad()
    def add(self, values: Mapping[str, PairValues], labels: Tensor) -> None:
        """Add pairs: their values in every layer, and the classes (N,) of their benign images."""
        if self._sums and self._sums.keys() != values.keys():
            raise ValueError("every update needs the same layers")
        device = self.counts.device
        labels = labels.to(device)
        self.pairs += len(labels)
        if self.classes:
            self.counts += torch.bincount(labels, minlength=self.classes)
        for layer, one in values.items():
            d, a, output = (value.to(device, torch.float64) for value in vars(one).values())
            terms = torch.stack([d, d * d, a, a * a, d * a, output])
            if layer not in self._sums:
                self._sums[layer] = terms.new_zeros(_SUMS, terms.shape[2])
                if self.classes:
                    self._of_classes[layer] = terms.new_zeros(_SUMS, self.classes, terms.shape[2])
            self._sums[layer] += terms.sum(1)
            if self.classes:
                self._of_classes[layer].index_add_(1, labels, terms)

    @torch.no_grad()
    def update(self, benign: Mapping[str, Tensor], adversarial: Mapping[str, Tensor], labels: Tensor) -> None:
        """Add pairs by every layer's outputs (N, neurons, positions) on benign images and on their twins."""
        self.add({layer: pair_values(benign[layer], adversarial[layer])[0] for layer in benign}, labels)

    def merge(self, other: StatisticsMeter) -> None:
        """Add what another meter has seen."""
        if not other._sums:
            return
        if self.classes != other.classes or (self._sums and self._sums.keys() != other._sums.keys()):
            raise ValueError("meters of the same layers and classes can be merged")
        self.pairs += other.pairs
        self.counts += other.counts.to(self.counts.device)
        for mine, theirs in ((self._sums, other._sums), (self._of_classes, other._of_classes)):
            for layer, sums in theirs.items():
                here = sums.to(self.counts.device)
                mine[layer] = mine[layer] + here if layer in mine else here.clone()

    def compute(self, label: int | None = None) -> dict[str, NeuronStatistics]:
        """Statistics of every layer over all pairs, or over those whose benign image is of one class."""
        pairs = self.pairs if label is None else int(self.counts[label])
        if pairs == 0:
            raise ValueError("no pair was measured" if label is None else f"no pair of class {label} was measured")
        if label is None:
            return {layer: _statistics(sums, pairs) for layer, sums in self._sums.items()}
        return {layer: _statistics(sums[:, label], pairs) for layer, sums in self._of_classes.items()}


def _statistics(sums: Tensor, pairs: int) -> NeuronStatistics:
    d, dd, a, aa, da, output = sums / pairs
    ratio, divisor = relative(d, a), relative_divisor(a)
    floored = divisor != a
    residual = torch.where(floored, dd - d * d, dd - 2.0 * ratio * da + ratio * ratio * aa)
    return NeuronStatistics(d, _error(dd - d * d, pairs), ratio, _error(residual, pairs) / divisor, a, output)


def _error(variance: Tensor, pairs: int) -> Tensor:
    """Standard error of a mean over pairs, from the mean square about it."""
    if pairs < 2:
        return torch.full_like(variance, torch.nan)
    return (variance.clamp(min=0.0) / (pairs - 1)).sqrt()
