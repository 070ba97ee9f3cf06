"""The pixel space of a classifier: images in [0, 1] outside, normalisation inside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PixelModel(nn.Module):
    """A classifier of images in [0, 1]: ``network((images - mean) / std)``.

    Mean and standard deviation are part of the state dict, so a weights file is a whole classifier.

    Parameters
    ----------
    network : takes normalised images (N, C, H, W), returns logits (N, classes).
    mean, std : one number per channel, or one for all, in units of the [0, 1] pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits
