"""Weather: snow, frost on the lens, fog."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distsens.data.corruptions.family import Family
from distsens.data.corruptions.filters import motion_blur, zoomed
from distsens.data.corruptions.textures import crystals, plasma
from distsens.randomness import normal, sample_keys, uniform

_ICE = (0.57, 0.66, 0.70)
"""Mean red, green and blue of frost."""

_RELIEF = 0.15
"""Standard deviation of its greys."""


def _snow(
    images: Tensor,
    keys: Tensor,
    mean: float,
    deviation: float,
    size: float,
    threshold: float,
    radius: float,
    fall: float,
    clear: float,
) -> Tensor:
    """Falling flakes, twice (the second time turned upside down), over an image that grows pale.

    Normal noise of ``mean`` and ``deviation`` is enlarged by ``size``; what exceeds ``threshold`` are flakes, smeared
    by ``radius`` and ``fall`` in a direction up to 45 degrees from the vertical. ``1 - clear`` of each pixel becomes
    ``1.5 * luma + 0.5`` where that is brighter.
    """
    noise = mean + deviation * normal(sample_keys(keys, "flakes"), (1, *images.shape[2:])).double()
    layer = zoomed(noise, size)
    flakes = torch.where(layer < threshold, 0.0, layer).clamp(max=1.0)
    angles = -math.pi / 4 * (1 + 2 * uniform(sample_keys(keys, "angle"), ()).double())
    falling = motion_blur(flakes, angles, radius, fall)
    pale = torch.maximum(images, 1.5 * _luma(images) + 0.5)
    return clear * images + (1 - clear) * pale + falling + falling.flip(2, 3)


def _frost(images: Tensor, keys: Tensor, clear: float, ice: float) -> Tensor:
    """``clear`` times the image plus ``ice`` times a texture of ice crystals.

    The original crops its textures from photographs; these are drawn (:func:`crystals`), so results on this family do
    not compare with those published.
    """
    texture = crystals(keys, images.shape[2], images.shape[3])
    tint = images.new_tensor(_ICE if images.shape[1] == 3 else (sum(_ICE) / 3,))
    return clear * images + ice * (tint[:, None, None] + _RELIEF * texture).clamp(0.0, 1.0)


def _luma(images: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) of three channels, one channel as it is: (N, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    luma: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma


def _fog(images: Tensor, keys: Tensor, density: float, decay: float) -> Tensor:
    """A plasma times ``density`` over the image, and both scaled so that the brightest value stays possible.

    ``(x + density * p) * m / (m + density)``, with m the largest value of the image.
    """
    height, width = images.shape[2:]
    brightest = images.amax((1, 2, 3), keepdim=True)
    veil = plasma(keys, max(height, width), decay)[:, None, :height, :width]
    return (images + density * veil) * (brightest / (brightest + density))


WEATHER = {
    "snow": Family(
        _snow,
        small=(
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        large=(
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": Family(
        _frost,
        small=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        large=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "fog": Family(
        _fog,
        small=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        large=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
}
