"""Random textures of the weather, one per key."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distsens.data.corruptions.filters import motion_blur
from distsens.randomness import sample_keys, uniform

_SEEDS = 0.06
"""Part of the pixels where a needle begins."""


def plasma(keys: Tensor, side: int, decay: float) -> Tensor:
    """Clouds by diamond-square on a torus (Fournier, Fussell and Carpenter, CACM 1982), each scaled to [0, 1].

    The middle of every square is the mean of its four corners plus uniform noise, then the middle of every diamond so,
    then the squares are half as wide and the noise weaker by the factor ``decay^2``.

    Returns
    -------
    float64 tensor (N, S, S), S the power of two from ``side`` on.
    """
    levels = math.ceil(math.log2(side))
    clouds = torch.zeros(len(keys), 1, 1, dtype=torch.float64, device=keys.device)
    for level in range(levels):
        points = clouds.shape[1]
        noise = (2 * uniform(sample_keys(keys, level), (3, points, points)).double() - 1) * decay ** (-2 * level)
        below = clouds + clouds.roll(-1, 1)
        middles = (below + below.roll(-1, 2)) / 4 + noise[:, 0]
        tops = (clouds + clouds.roll(-1, 2) + middles + middles.roll(1, 1)) / 4 + noise[:, 1]
        lefts = (below + middles + middles.roll(1, 2)) / 4 + noise[:, 2]
        upper, lower = torch.stack([clouds, tops], dim=3), torch.stack([lefts, middles], dim=3)
        clouds = torch.stack([upper, lower], dim=2).reshape(len(keys), 2 * points, 2 * points)
    low, high = clouds.amin((1, 2), keepdim=True), clouds.amax((1, 2), keepdim=True)
    return (clouds - low) / (high - low)


def crystals(keys: Tensor, height: int, width: int) -> Tensor:
    """Rime, denser and thinner like clouds, grown through by needles in three directions of each image's own.

    Returns
    -------
    float64 tensor (N, 1, height, width), of mean 0 and standard deviation 1 in every image.
    """
    side = max(height, width)
    length = max(6, side // 16)
    margin = 2 * length  # as far as a needle reaches, so that none begins at the border
    layers = []
    for direction in range(3):
        own = sample_keys(keys, "needles", direction)
        seeds = uniform(sample_keys(own, "seeds"), (1, height + 2 * margin, width + 2 * margin)) < _SEEDS
        angles = 2 * math.pi * uniform(sample_keys(own, "angle"), ()).double()
        layers.append(motion_blur(seeds.double(), angles, length, length)[..., margin:-margin, margin:-margin])
    needles = (3 * torch.stack(layers).amax(0)).clamp(max=1.0)
    rime = plasma(sample_keys(keys, "rime"), side, decay=1.3)[:, None, :height, :width]
    texture = rime + needles * (0.3 + rime)
    return (texture - texture.mean((2, 3), keepdim=True)) / texture.std((2, 3), keepdim=True)
