"""Neuron sensitivity, summed exactly over any number of batches and workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

RELATIVE_FLOOR = 1e-2
"""Smallest divisor of a relative sensitivity, as a fraction of the layer's mean absolute benign output."""


def pair_difference(benign: Tensor, adversarial: Tensor) -> Tensor:
    """``||F^m(x_i) - F^m(x'_i)||_1 / dim`` for outputs (N, neurons, positions): (N, neurons), float32 or wider.

    The absolute value comes before the average over positions: the other order lets signs cancel.
    """
    if benign.shape != adversarial.shape:
        raise ValueError(f"pairs need equal shapes: {tuple(benign.shape)} against {tuple(adversarial.shape)}")
    return (_wide(benign) - _wide(adversarial)).abs().mean(2)


def relative_divisor(magnitude: Tensor) -> Tensor:
    """What makes a sensitivity relative: the neurons' mean absolute benign output, (neurons,), with a floor.

    It is at least ``RELATIVE_FLOOR`` times its mean over the layer, so that a neuron which is silent on benign images
    has a large but finite relative sensitivity; in a layer that is silent altogether it is infinite, so that the
    relative sensitivity is zero.
    """
    divisor = torch.maximum(magnitude, RELATIVE_FLOOR * magnitude.mean())
    return torch.where(divisor > 0, divisor, torch.inf)


def relative(difference: Tensor, magnitude: Tensor) -> Tensor:
    """Sensitivity over :func:`relative_divisor` of the neurons' magnitude, (neurons,) each."""
    return difference / relative_divisor(magnitude)


@dataclass(frozen=True)
class LayerSensitivity:
    """The neurons of one layer: entry m of each (neurons,) float64 tensor is neuron m.

    absolute : sigma, the mean over pairs of ``||F^m(x_i) - F^m(x'_i)||_1 / dim``.
    magnitude : the mean over pairs of ``||F^m(x_i)||_1 / dim``.
    relative : absolute over magnitude, with the floor of :func:`relative_divisor`.
    """

    absolute: Tensor
    magnitude: Tensor
    relative: Tensor

    def cpu(self) -> LayerSensitivity:
        """The same in main memory, where any process can read it."""
        return LayerSensitivity(self.absolute.cpu(), self.magnitude.cpu(), self.relative.cpu())


class SensitivityMeter:
    """Streaming sensitivity: sigma(F_l^m, D) = 1/N sum_i 1/dim ||F_l^m(x_i) - F_l^m(x'_i)||_1.

    Zhang et al., "Interpreting and Improving Adversarial Robustness of Deep Neural Networks with Neuron Sensitivity",
    IEEE TIP 2021, arXiv 1909.06978. It holds float64 sums per neuron, so memory does not grow with the data and the
    result does not depend on how the pairs were batched, ordered or spread over workers.

    Parameters
    ----------
    neurons : number of neurons of each layer, needed only by a worker that may see no pair before :meth:`reduce`
        (see :func:`neuron_counts`); otherwise learnt from the first update.
    device : where the sums are held.
    """

    def __init__(self, neurons: Mapping[str, int] | None = None, device: torch.device | str = "cpu") -> None:
        self.pairs = 0
        self._difference: dict[str, Tensor] = {}
        self._magnitude: dict[str, Tensor] = {}
        for layer, count in (neurons or {}).items():
            self._difference[layer] = torch.zeros(count, dtype=torch.float64, device=device)
            self._magnitude[layer] = torch.zeros(count, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, benign: Mapping[str, Tensor], adversarial: Mapping[str, Tensor]) -> None:
        """Add pairs: for every layer the outputs (N, neurons, positions) on benign images and on their twins."""
        if benign.keys() != adversarial.keys():
            raise ValueError(f"layers differ: {sorted(benign)} against {sorted(adversarial)}")
        self.add({layer: pair_sums(benign[layer], adversarial[layer]) for layer in benign})

    @torch.no_grad()
    def add(self, sums: Mapping[str, PairSums]) -> None:
        """Add sums over pairs that were already taken, layer by layer, by :func:`pair_sums`."""
        counts = {layer_sums.pairs for layer_sums in sums.values()}
        if len(counts) != 1 or (self._difference and self._difference.keys() != sums.keys()):
            raise ValueError("every update needs the same layers, and the same pairs in each")
        self.pairs += counts.pop()
        for layer, one in sums.items():
            if layer in self._difference:
                self._difference[layer] += one.difference
                self._magnitude[layer] += one.magnitude
            else:
                self._difference[layer] = one.difference.clone()
                self._magnitude[layer] = one.magnitude.clone()

    def merge(self, other: SensitivityMeter) -> None:
        """Add what another meter has seen."""
        if other._difference:
            self.add(
                {
                    layer: PairSums(other.pairs, other._difference[layer], other._magnitude[layer])
                    for layer in other._difference
                }
            )

    def reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum over all workers of the process group, in one all-reduce; does nothing without one."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        if not self._difference:
            raise ValueError("a worker that may see no pair before reduce needs to be told the layers' neurons")
        layers = sorted(self._difference)  # workers may have met the layers in different orders
        device = self._difference[layers[0]].device
        parts = [torch.tensor([self.pairs], dtype=torch.float64, device=device)]
        parts += [sums[layer] for sums in (self._difference, self._magnitude) for layer in layers]
        total = torch.cat(parts)
        dist.all_reduce(total, group=group)
        pieces = list(total.split([len(part) for part in parts]))
        self.pairs = int(pieces[0].item())
        self._difference.update(zip(layers, pieces[1 : 1 + len(layers)], strict=True))
        self._magnitude.update(zip(layers, pieces[1 + len(layers) :], strict=True))

    def compute(self) -> dict[str, LayerSensitivity]:
        """Sensitivity of every neuron of every layer over all pairs seen."""
        if self.pairs == 0:
            raise ValueError("no pair was measured")
        result = {}
        for layer in self._difference:
            difference = self._difference[layer] / self.pairs
            magnitude = self._magnitude[layer] / self.pairs
            result[layer] = LayerSensitivity(difference, magnitude, relative(difference, magnitude))
        return result


@dataclass(frozen=True)
class PairSums:
    """Sums over ``pairs`` pairs of a layer's differences and magnitudes: (neurons,) float64 each."""

    pairs: int
    difference: Tensor
    magnitude: Tensor


@torch.no_grad()
def pair_sums(benign: Tensor, adversarial: Tensor) -> PairSums:
    """Sums over the pairs of one layer's outputs, (N, neurons, positions) each."""
    difference = pair_difference(benign, adversarial)
    magnitude = _wide(benign).abs().mean(2)
    return PairSums(len(benign), difference.sum(0, dtype=torch.float64), magnitude.sum(0, dtype=torch.float64))


def _wide(x: Tensor) -> Tensor:
    """Half precision would round a small difference away."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
