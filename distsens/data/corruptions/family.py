"""What a family of corruptions is: a function of images, and its parameters at severities 1 to 5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

SMALL = 64
"""Images with no side longer than this take the parameters of CIFAR-10-C, larger ones those of ImageNet-C."""

Severities = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Family:
    """One of the corruptions of CIFAR-10-C and ImageNet-C.

    Parameters
    ----------
    corrupted : ``corrupted(images, keys, *parameters)``: float64 pixels (N, C, H, W) in [0, 1] and one key per image
        to pixels that may lie outside. Image i depends on ``keys[i]`` alone.
    small, large : the parameters at severities 1 to 5, published for CIFAR-10-C (32x32) and ImageNet-C (224x224).
    """

    corrupted: Callable[..., Tensor]
    small: Severities
    large: Severities

    def __call__(self, images: Tensor, keys: Tensor, severity: int) -> Tensor:
        """The images at this severity, with the parameters for their size."""
        parameters = self.small if max(images.shape[2:]) <= SMALL else self.large
        return self.corrupted(images, keys, *parameters[severity - 1])
