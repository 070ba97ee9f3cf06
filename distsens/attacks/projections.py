"""Exact projections onto a ball cut by the pixel range: the nearest point of both, not of one after the other.

In coordinates relative to the image, ball and box are symmetric enough that a projected offset d keeps the signs of the
offset v, so that the box is one bound per coordinate: how far it can reach in the direction of its v. Clipping to the
box after a projection onto the ball also ends inside both, but short of the nearest point: it gives away the radius
that the clipped coordinates had (Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image
classifiers", ICML 2021).
"""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor

_ROUNDING = 1e-12


def project_l2(offsets: Tensor, reach: Tensor, eps: float) -> Tensor:
    """Nearest d to v with ``||d||_2 <= eps`` and ``|d_i| <= reach_i``.

    By the optimality conditions ``|d_i| = min(s |v_i|, reach_i)`` for one s in [0, 1]. In u = s^2 the squared norm is
    increasing, concave and piecewise linear, so that Newton's method from below reaches the u of ``||d||_2 = eps``
    without overshooting, and ends there as soon as no further coordinate reaches its bound.

    Parameters
    ----------
    offsets : (N, D), v.
    reach : (N, D), 0 or more; infinite where there is no bound.
    eps : radius.

    Returns
    -------
    (N, D) in the type of ``offsets``; sums are taken in float64.
    """
    squares, bounds = offsets.square(), reach.square()
    scale = torch.zeros(len(offsets), 1, dtype=torch.float64, device=offsets.device)
    while True:
        bound = bounds <= scale.to(squares.dtype) * squares
        left = eps**2 - _sum(torch.where(bound, bounds, 0.0))
        # Where every coordinate is at its bound nothing is free, and the scale may grow to 1.
        free = _sum(torch.where(bound, 0.0, squares)).clamp(min=1e-300)
        larger = torch.clamp(left / free, min=scale, max=torch.ones_like(scale))
        if not (larger > scale).any():  # So written, NaN ends it too.
            break
        scale = larger
    return torch.minimum(scale.sqrt().to(offsets.dtype) * offsets.abs(), reach).copysign(offsets)


def project_l1(offsets: Tensor, reach: Tensor, eps: float) -> Tensor:
    """Nearest d to v in L2 with ``||d||_1 <= eps`` and ``|d_i| <= reach_i``.

    By the optimality conditions ``|d_i| = clip(|v_i| - t, 0, reach_i)`` for one threshold t >= 0. The L1 norm is
    decreasing and piecewise linear in t, so that Newton's method, kept by bisection between a t that is too small and
    one that is large enough, ends at the t where it is eps. Without bounds this is the projection of Duchi et al.,
    "Efficient Projections onto the l1-Ball for Learning in High Dimensions", ICML 2008. Arguments and result as in
    :func:`project_l2`.
    """
    lengths, bounds = offsets.abs().double(), reach.double()
    threshold = torch.zeros(len(offsets), 1, dtype=torch.float64, device=offsets.device)
    small, large = threshold, lengths.amax(1, keepdim=True)
    found = torch.zeros_like(threshold, dtype=torch.bool)
    for step in count(1):
        left = lengths - threshold
        nearest = torch.minimum(left.clamp(min=0.0), bounds)
        excess = _sum(nearest) - eps
        # Inside the ball already the threshold is 0, up to which nothing shrinks.
        enough = excess <= 0.0 if step == 1 else excess.abs() <= _ROUNDING * eps
        found |= enough | excess.isnan()
        small, large = torch.where(excess > 0.0, threshold, small), torch.where(excess > 0.0, large, threshold)
        middle = 0.5 * (small + large)
        # Between two neighbouring numbers it is the larger one, with which the norm is eps or less.
        closed = (middle <= small) | (middle >= large)
        threshold = torch.where(closed & ~found, large, threshold)
        found |= closed
        if found.all():
            break
        newton = threshold + excess / (nearest == left).sum(1, keepdim=True)  # By what shrinks as the threshold grows.
        # Every third time the middle, so that the two come closer however the knots lie.
        inside = (newton > small) & (newton < large) & (step % 3 != 0)
        threshold = torch.where(found, threshold, torch.where(inside, newton, middle))
    # Subtracted in float64: the same rounding of the threshold in every coordinate would add up.
    return torch.minimum((lengths - threshold).clamp_(min=0.0), bounds).to(offsets.dtype).copysign(offsets)


def _sum(values: Tensor) -> Tensor:
    return values.sum(1, keepdim=True, dtype=torch.float64)
