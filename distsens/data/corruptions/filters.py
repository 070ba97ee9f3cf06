"""Linear filters and resampling that the families share. Borders are mirrored, the edge pixel repeated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def mirrored(positions: Tensor, size: int) -> Tensor:
    """Positions outside ``0 .. size - 1`` reflected into it, as often as it takes."""
    folded = positions.remainder(2 * size)
    return torch.minimum(folded, 2 * size - 1 - folded)


def gaussian_blur(images: Tensor, deviation: float, reach: float) -> Tensor:
    """Convolution with a Gaussian cut off at ``reach`` standard deviations; ``deviation`` 0 leaves the images.

    Along one axis of n pixels it is an n x n matrix, whose rows hold the mirrored Gaussian.
    """
    radius = int(reach * deviation + 0.5)
    taps = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (taps / max(deviation, 1e-9)).double() ** 2)
    weights /= weights.sum()

    def matrix(size: int) -> Tensor:
        sources = mirrored(torch.arange(size, device=images.device)[:, None] + taps, size)
        return images.new_zeros(size, size).scatter_add_(1, sources, weights.expand(size, -1))

    return matrix(images.shape[-2]) @ images @ matrix(images.shape[-1]).T


def motion_blur(images: Tensor, angles: Tensor, radius: float, deviation: float) -> Tensor:
    """Smear image i one way along ``angles[i]`` (radians, from the right, downwards), by half a Gaussian.

    The mean over ``u = 0 .. 2 * radius`` of the pixels u steps away, rounded to the grid, with weights
    ``exp(-u^2 / (2 * deviation^2))``; outside, the nearest pixel of the edge.
    """
    _, channels, height, width = images.shape
    steps = torch.arange(2 * math.ceil(radius) + 1, dtype=torch.float64, device=images.device)
    weights = torch.exp(-0.5 * (steps / deviation) ** 2)
    weights /= weights.sum()
    # Halves are rounded down, a little late: at a turn by 45 degrees only rounding errors would decide.
    right, down = (torch.ceil(steps * turn[:, None] - 0.5 - 1e-6).long() for turn in (angles.cos(), angles.sin()))
    rows = torch.arange(height, device=images.device) + down[:, :, None]
    columns = torch.arange(width, device=images.device) + right[:, :, None]
    places = rows.clamp(0, height - 1)[..., None] * width + columns.clamp(0, width - 1)[:, :, None]
    flat, blurred = images.flatten(2), torch.zeros_like(images).flatten(2)
    for step, weight in enumerate(weights.tolist()):
        blurred += weight * flat.gather(2, places[:, step].flatten(1)[:, None].expand(-1, channels, -1))
    return blurred.reshape(images.shape)


def zoomed(images: Tensor, factor: float) -> Tensor:
    """The middle of the images enlarged by ``factor`` (1 or more), bilinearly, at the size of the images."""
    sizes = images.shape[-2:]
    kept = [math.ceil(size / factor) for size in sizes]
    enlarged = [round(keep * factor) for keep in kept]
    middle = _centre(images, kept)
    return _centre(F.interpolate(middle, enlarged, mode="bilinear", align_corners=True), sizes)


def _centre(images: Tensor, sizes: Sequence[int]) -> Tensor:
    top, left = ((whole - part) // 2 for whole, part in zip(images.shape[-2:], sizes, strict=True))
    return images[..., top : top + sizes[0], left : left + sizes[1]]


def sampled(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The images at these places, float64 (N, H, W) from the centre of the first pixel, bilinearly."""
    height, width = images.shape[-2:]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
