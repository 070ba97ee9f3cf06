"""Sensitivity with its standard error, over all pairs and within each class, summed exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distsens.sensitivity.measure import pair_difference, relative, relative_divisor

_SUMS = ("difference", "difference squared", "magnitude", "magnitude squared", "their product", "output")


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
def pair_values(benign: Tensor, adversarial: Tensor) -> PairValues:
    """Values of one layer's outputs (N, neurons, positions) on benign images and on their twins; float32 or wider."""
    wide = benign.float() if benign.dtype in (torch.bfloat16, torch.float16) else benign
    return PairValues(pair_difference(benign, adversarial), wide.abs().mean(2), wide.mean(2))


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

    It holds six float64 sums for every class and neuron, so its memory does not grow with the pairs. Meters of disjoint
    pairs are merged by addition: the result does not depend on how the pairs were batched or sharded, up to rounding in
    float64, and the same shards merged in the same order give the same bits.

    Parameters
    ----------
    classes : number of classes; labels are 0 to classes - 1.
    device : where the sums are held.
    """

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(classes, dtype=torch.int64, device=device)
        self._sums: dict[str, Tensor] = {}

    @property
    def pairs(self) -> int:
        """How many pairs were seen."""
        return int(self.counts.sum())

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, in the order in which they were met."""
        return tuple(self._sums)

    @torch.no_grad()
    def add(self, values: Mapping[str, PairValues], labels: Tensor) -> None:
        """Add pairs: their values in every layer, and the classes (N,) of their benign images."""
        if self._sums and self._sums.keys() != values.keys():
            raise ValueError("every update needs the same layers")
        labels = labels.to(self.counts.device)
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        for layer, one in values.items():
            d, a, output = (value.to(self.counts.device, torch.float64) for value in vars(one).values())
            terms = torch.stack([d, d * d, a, a * a, d * a, output])
            empty = terms.new_zeros(len(_SUMS), len(self.counts), terms.shape[2])
            self._sums.setdefault(layer, empty).index_add_(1, labels, terms)

    @torch.no_grad()
    def update(self, benign: Mapping[str, Tensor], adversarial: Mapping[str, Tensor], labels: Tensor) -> None:
        """Add pairs by every layer's outputs (N, neurons, positions) on benign images and on their twins."""
        self.add({layer: pair_values(benign[layer], adversarial[layer]) for layer in benign}, labels)

    def merge(self, other: StatisticsMeter) -> None:
        """Add what another meter has seen."""
        if not other._sums:
            return
        if self._sums and self._sums.keys() != other._sums.keys():
            raise ValueError("meters of the same layers can be merged")
        self.counts += other.counts.to(self.counts.device)
        for layer, sums in other._sums.items():
            here = sums.to(self.counts.device)
            self._sums[layer] = self._sums[layer] + here if layer in self._sums else here.clone()

    def compute(self, label: int | None = None) -> dict[str, NeuronStatistics]:
        """Statistics of every layer over all pairs, or over those whose benign image is of one class."""
        pairs = self.pairs if label is None else int(self.counts[label])
        if pairs == 0:
            raise ValueError("no pair was measured" if label is None else f"no pair of class {label} was measured")
        return {
            layer: _statistics(sums.sum(1) if label is None else sums[:, label], pairs)
            for layer, sums in self._sums.items()
        }


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
