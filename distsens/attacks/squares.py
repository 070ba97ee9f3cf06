"""Square Attack's points: the first ones, and those with one square changed.

Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", ECCV 2020,
algorithms 2 (Linf) and 3 (L2); in L1 as AutoAttack has it (Croce and Hein, "Mind the box: l1-APGD for sparse
adversarial attacks on image classifiers", ICML 2021). Where papers and AutoAttack's code differ, it is the code that
public numbers come from, and that is followed: sides are rounded to the nearest number and in L2 and L1 an even one
grows by one, squares reach neither the last row nor the last column unless they are as large as the image, and the
two halves of a tile weigh the same.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from distsens.attacks.threat import Norm, Threat, norms
from distsens.randomness import uniform

_ORDER: dict[Norm, float] = {"l2": 2.0, "l1": 1.0}
# How fast a tile falls off from its centre: in L1, where few pixels should change, faster.
_DECAY: dict[Norm, int] = {"l2": 2, "l1": 4}


def first_points(threat: Threat, images: Tensor, keys: Tensor) -> Tensor:
    """Vertical stripes of ``+-eps`` per channel in Linf, a grid of about 5 x 5 tiles in L2 and L1.

    The grid's offsets are scaled to norm eps and clipped to [0, 1] in L2, and projected onto ball and [0, 1] in L1.

    Parameters
    ----------
    images : (N, C, H, W) in [0, 1].
    keys : (N,) integers; point i depends on ``keys[i]`` alone.
    """
    channels, height, width = images.shape[1:]
    if threat.norm == "linf":
        return threat.project(images + threat.eps * _signs(uniform(keys, (channels, 1, width))), images)
    short = min(height, width)
    side = max(short // 5, 1)
    down, across = height // side, width // side
    numbers = uniform(keys, (channels + 1, down, across))
    chosen = tiles(side, threat.norm).to(images)[(numbers[:, -1:] < 0.5).long()]
    signed = _signs(numbers[:, :-1])[..., None, None] * chosen
    grid = signed.transpose(3, 4).reshape(len(images), channels, down * side, across * side)
    # Five tiles lie in the middle of the shorter side; more of them are cut off by the image's end.
    first = max(short - 5 * side, 0) // 2
    offsets = F.pad(grid, (first, width - across * side - first, first, height - down * side - first))
    if threat.norm == "l1":
        return threat.project(images + offsets, images)
    return (images + offsets * (threat.eps / norms(offsets, 2))).clamp_(0.0, 1.0)


def changed_points(threat: Threat, points: Tensor, images: Tensor, keys: Tensor, part: float) -> Tensor:
    """The points with a square changed that covers this part of the image.

    In Linf the square of each channel becomes ``+-eps``. In L2 and L1 it gets the sum of its own normalised offsets and
    ``+-`` a tile, of the norm that it and a second square had, which becomes zero, and what is left of eps. In L1 it
    gets that once for each channel, and the whole is projected onto ball and [0, 1], which takes from every pixel alike
    until the smallest offsets vanish.

    Parameters
    ----------
    points, images : (N, C, H, W) in [0, 1], the points in the balls around the images.
    keys : (N,) integers; point i depends on ``keys[i]`` alone.
    """
    channels, height, width = images.shape[1:]
    numbers = uniform(keys, (5 + channels,))
    signs = _signs(numbers[:, 5:, None, None])
    side = square_side(threat.norm, part, height, width)
    corners = _corners(numbers[:, :2], side, images)
    taking = _square(corners, side, images)
    if threat.norm == "linf":
        return torch.where(taking, threat.project(images + threat.eps * signs, images), points)
    order = _ORDER[threat.norm]
    giving = _square(_corners(numbers[:, 2:4], side, images), side, images)
    offsets = points - images
    powers = offsets.abs().double() ** order
    unused = (threat.eps**order - powers.sum((1, 2, 3), keepdim=True)).clamp(min=0.0)
    available = (powers * (taking | giving)).sum((2, 3), keepdim=True) + unused / channels
    if threat.norm == "l1":
        available = channels * available

    cells = torch.arange(side, device=images.device)
    window = (
        torch.arange(len(images), device=images.device)[:, None, None, None],
        torch.arange(channels, device=images.device)[:, None, None],
        corners[:, None, :1, None] + cells[:, None],
        corners[:, None, 1:, None] + cells,
    )
    mixed = _unit(offsets[window], order) + signs * tiles(side, threat.norm).to(images)[(numbers[:, 4:5] < 0.5).long()]
    offsets = offsets.masked_fill(giving, 0.0)
    offsets[window] = _unit(mixed, order) * (available ** (1.0 / order)).to(images.dtype)
    if threat.norm == "l1":
        return threat.project(images + offsets, images)
    return offsets.add_(images).clamp_(0.0, 1.0)


def square_side(norm: Norm, part: float, height: int, width: int) -> int:
    """Side of a square that covers this part of an image: in L2 and L1 odd, and 3 at the least, if the image is."""
    side = max(round(math.sqrt(part * height * width)), 1 if norm == "linf" else 3)
    if norm != "linf" and side % 2 == 0:
        side += 1
    return min(side, height, width)


@cache
def tiles(side: int, norm: Norm) -> Tensor:
    """The pattern eta of section 3.4 in its two orientations, of norm 1: (2, side, side).

    Two halves of opposite sign and of the same norm, each with ``sum over k = 0 ... M of 1 / (n + 1 - k)^2`` at row r
    and column s, where ``n = floor(side / 2)`` and ``M = n - max(|r - n - 1|, |s - floor(width / 2) - 1|)``. In L1 the
    power is 4.
    """
    n = side // 2
    sums = torch.cumsum(1.0 / torch.arange(n + 1, 0, -1, dtype=torch.float64) ** _DECAY[norm], dim=0)

    def half(width: int) -> Tensor:
        down = (torch.arange(side) - n).abs()[:, None]
        across = (torch.arange(width) - width // 2).abs()
        return unit(sums[n - torch.maximum(down, across)])

    def unit(values: Tensor) -> Tensor:
        return values / norms(values[None], _ORDER[norm])[0]

    eta = unit(torch.cat([half(n), -half(side - n)], dim=1))
    return torch.stack([eta, eta.T])


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0)


def _unit(windows: Tensor, order: float) -> Tensor:
    """Windows (N, C, h, h), each of norm 1; one of zeros stays zero."""
    return windows / norms(windows.flatten(0, 1), order).reshape(*windows.shape[:2], 1, 1)


def _corners(numbers: Tensor, side: int, images: Tensor) -> Tensor:
    """Top left corners (N, 2) of squares in the images, short of their last row and column, from numbers in [0, 1)."""
    places = torch.tensor([extent - side for extent in images.shape[2:]], device=images.device)
    return (numbers * places).long()


def _square(corners: Tensor, side: int, images: Tensor) -> Tensor:
    """Mask (N, 1, H, W) of the squares."""
    down, across = (
        (torch.arange(extent, device=images.device) - corner[:, None]).ge(0)
        & (torch.arange(extent, device=images.device) - corner[:, None]).lt(side)
        for extent, corner in zip(images.shape[2:], corners.unbind(1), strict=True)
    )
    return down[:, None, :, None] & across[:, None, None, :]
