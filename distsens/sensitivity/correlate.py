"""How alike the neurons of two models are: correlations of their outputs on the same images, summed exactly."""

from __future__ import annotations

import torch
from torch import Tensor


class NeuronCorrelation:
    """Streaming Pearson correlation between every neuron of one layer and every neuron of another.

    Images and positions are the observations, so the layers need as many positions as one another. Neurons of networks
    that differ in their seed alone stand in another order; the correlations say which is which (Li et al., "Convergent
    Learning: Do Different Neural Networks Learn the Same Representations?", ICLR 2016).
    """

    def __init__(self) -> None:
        self.observations = 0
        self._shift: tuple[Tensor, ...] = ()
        self._sums: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def update(self, first: Tensor, second: Tensor) -> None:
        """Add outputs (N, neurons, positions) of both layers on the same images."""
        if (first.shape[0], first.shape[2]) != (second.shape[0], second.shape[2]):
            raise ValueError(f"other images or positions: {tuple(first.shape)} against {tuple(second.shape)}")
        a, b = (x.movedim(1, 0).flatten(1).double() for x in (first, second))
        if not self._sums:
            # Sums about a first mean: those about zero would lose the variance of neurons with a large one.
            self._shift = (a.mean(1, keepdim=True), b.mean(1, keepdim=True))
        a, b = a - self._shift[0], b - self._shift[1]
        sums = (a.sum(1), b.sum(1), a.square().sum(1), b.square().sum(1), a @ b.T)
        self._sums = tuple(old + new for old, new in zip(self._sums, sums, strict=True)) if self._sums else sums
        self.observations += a.shape[1]

    @property
    def correlation(self) -> Tensor:
        """(neurons of the first, neurons of the second) float64; 0 where a neuron is constant."""
        a, b, aa, bb, ab = (total / self.observations for total in self._sums)
        deviation = (aa - a * a).clamp(min=0.0).sqrt()[:, None] * (bb - b * b).clamp(min=0.0).sqrt()[None, :]
        covariance = ab - a[:, None] * b[None, :]
        return torch.where(deviation > 1e-12, covariance / deviation.clamp(min=1e-12), 0.0).clamp(-1.0, 1.0)
