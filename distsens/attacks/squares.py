"""Square Attack's points: the first ones, and those with one square changed.

Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", ECCV 2020,
algorithms 2 (Linf) and 3 (L2); L1 differs from L2 in the norm alone.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from distsens.attacks.threat import Threat, norms
from distsens.randomness import uniform


def first_points(threat: Threat, images: Tensor, keys: Tensor) -> Tensor:
    """Vertical stripes of ``+-eps`` per channel in Linf, a grid of about 5 x 5 tiles in L2 and L1.

    Parameters
    ----------
    images : (N, C, H, W) in [0, 1].
    keys : (N,) integers; point i depends on ``keys[i]`` alone.
    """
    channels, height, width = images.shape[1:]
    if threat.norm == "linf":
        return threat.project(images + threat.eps * _signs(uniform(keys, (channels, 1, width))), images)
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    numbers = uniform(keys, (channels + 1, down, across))
    chosen = tiles(side, _order(threat)).to(images)[(numbers[:, -1:] < 0.5).long()]
    signed = _signs(numbers[:, :-1])[..., None, None] * chosen
    grid = signed.transpose(3, 4).reshape(len(images), channels, down * side, across * side)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    offsets = F.pad(grid, (left, width - across * side - left, top, height - down * side - top))
    return (images + offsets * (threat.eps / norms(offsets, _order(threat)))).clamp_(0.0, 1.0)


def changed_points(threat: Threat, points: Tensor, images: Tensor, keys: Tensor, part: float) -> Tensor:
    """The points with a square changed that covers this part of the image.

    In Linf the square of each channel becomes ``+-eps``. In L2 and L1 it gets what is left of eps, and the offsets'
    norm of a second square, which becomes zero, for the sum of its own normalised offsets and ``+-`` a tile.

    Parameters
    ----------
    points, images : (N, C, H, W) in [0, 1], the points in the balls around the images.
    keys : (N,) integers; point i depends on ``keys[i]`` alone.
    """
    channels, height, width = images.shape[1:]
    numbers = uniform(keys, (5 + channels,))
    signs = _signs(numbers[:, 5:, None, None])
    length = math.sqrt(part * height * width)
    if threat.norm == "linf":
        side = min(max(round(length), 1), height, width)
        square = _square(_corners(numbers[:, :2], side, images), side, images)
        return torch.where(square, threat.project(images + threat.eps * signs, images), points)
    order = _order(threat)
    side = min(max(2 * round((length - 1.0) / 2.0) + 1, 3), height, width)  # The closest odd number.
    corners = _corners(numbers[:, :2], side, images)
    taking = _square(corners, side, images)
    giving = _square(_corners(numbers[:, 2:4], side, images), side, images)
    offsets = points - images
    powers = offsets.abs().double() ** order
    unused = (threat.eps**order - powers.sum((1, 2, 3), keepdim=True)).clamp(min=0.0)
    available = (powers * (taking | giving)).sum((2, 3), keepdim=True) + unused / channels

    cells = torch.arange(side, device=images.device)
    window = (
        torch.arange(len(images), device=images.device)[:, None, None, None],
        torch.arange(channels, device=images.device)[:, None, None],
        corners[:, None, :1, None] + cells[:, None],
        corners[:, None, 1:, None] + cells,
    )
    mixed = _unit(offsets[window], order) + signs * tiles(side, order).to(images)[(numbers[:, 4:5] < 0.5).long()]
    offsets = offsets.masked_fill(giving, 0.0)
    offsets[window] = _unit(mixed, order) * (available ** (1.0 / order)).to(images.dtype)
    return offsets.add_(images).clamp_(0.0, 1.0)


@cache
def tiles(side: int, order: float) -> Tensor:
    """The pattern eta of section 3.4 in its two orientations, of norm 1: (2, side, side).

    Two halves of opposite sign, each with ``sum over k = 0 ... M of 1 / (n + 1 - k)^2`` at row r and column s, where
    ``n = floor(side / 2)`` and ``M = n - max(|r - n - 1|, |s - floor(width / 2) - 1|)``.
    """
    n = side // 2
    sums = torch.cumsum(1.0 / torch.arange(n + 1, 0, -1, dtype=torch.float64) ** 2, dim=0)

    def half(width: int) -> Tensor:
        down = (torch.arange(side) - n).abs()[:, None]
        across = (torch.arange(width) - width // 2).abs()
        return sums[n - torch.maximum(down, across)]

    eta = torch.cat([half(n), -half(side - n)], dim=1)
    eta = eta / torch.linalg.vector_norm(eta, ord=order)
    return torch.stack([eta, eta.T])


def _order(threat: Threat) -> float:
    return 2.0 if threat.norm == "l2" else 1.0


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0)


def _unit(windows: Tensor, order: float) -> Tensor:
    """Windows (N, C, h, h), each of norm 1; one of zeros stays zero."""
    return windows / norms(windows.flatten(0, 1), order).reshape(*windows.shape[:2], 1, 1)


def _corners(numbers: Tensor, side: int, images: Tensor) -> Tensor:
    """Top left corners (N, 2) of squares that lie in the images, from numbers in [0, 1)."""
    places = torch.tensor([extent - side + 1 for extent in images.shape[2:]], device=images.device)
    return (numbers * places).long()


def _square(corners: Tensor, side: int, images: Tensor) -> Tensor:
    """Mask (N, 1, H, W) of the squares."""
    down, across = (
        (torch.arange(extent, device=images.device) - corner[:, None]).ge(0)
        & (torch.arange(extent, device=images.device) - corner[:, None]).lt(side)
        for extent, corner in zip(images.shape[2:], corners.unbind(1), strict=True)
    )
    return down[:, None, :, None] & across[:, None, None, :]
