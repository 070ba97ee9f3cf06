"""The images that move each neuron most, kept while they stream by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class TopImages:
    """For every neuron of every layer the ``count`` images with the largest value, and the values.

    Among equal values the image with the smaller number wins, so the result does not depend on order or sharding.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.values: dict[str, Tensor] = {}
        self.images: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, values: Mapping[str, Tensor], numbers: Tensor) -> None:
        """Add images: their values (N, neurons) for every layer, and their numbers (N,)."""
        for layer, one in values.items():
            self._take(layer, one.T.cpu(), numbers.cpu().expand(one.shape[1], -1))

    def merge(self, other: TopImages) -> None:
        """Add what another one has kept."""
        for layer, values in other.values.items():
            self._take(layer, values, other.images[layer])

    def _take(self, layer: str, values: Tensor, images: Tensor) -> None:
        if layer in self.values:
            values = torch.cat([self.values[layer], values], 1)
            images = torch.cat([self.images[layer], images], 1)
        by_number = images.argsort(1)
        values, images = values.gather(1, by_number), images.gather(1, by_number)
        best = values.argsort(dim=1, descending=True, stable=True)[:, : self.count]
        self.values[layer], self.images[layer] = values.gather(1, best), images.gather(1, best)
