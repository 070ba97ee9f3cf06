"""Exact projections onto a ball cut by the pixel range: the nearest point of both, not of one after the other.

In coordinates relative to the image, ball and box are symmetric enough that a projected offset d keeps the signs of the
offset v, so that the box is one bound per coordinate: how far it can reach in the direction of its v. Clipping to the
box after a projection onto the ball also ends inside both, but short of the nearest point: it gives away the radius
that the clipped coordinates had (Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image
classifiers", ICML 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
    decreasing and piecewise linear in t, with knots at ``|v_i| - reach_i`` and ``|v_i|``: sorted, they give the piece
    on which it is eps. Without bounds this is the projection of Duchi et al., "Efficient Projections onto the l1-Ball
    for Learning in High Dimensions", ICML 2008. Arguments and result as in :func:`project_l2`.
    """
    lengths = offsets.abs()
    knots, order = torch.cat([(lengths - reach).clamp(min=0.0), lengths], dim=1).sort(dim=1)
    # After its first knot a coordinate shrinks as t grows, after its second it is zero.
    shrinking = torch.where(order < lengths.shape[1], 1, -1).cumsum(1)
    knots = knots.double()
    lost = (shrinking[:, :-1] * knots.diff(dim=1)).cumsum(1)
    norms = _sum(torch.minimum(lengths, reach)) - F.pad(lost, (1, 0))
    piece = (norms > eps).sum(1, keepdim=True).sub(1).clamp(min=0)
    excess = (norms.gather(1, piece) - eps).clamp(min=0.0)
    # Inside the ball already it is the first knot, up to which nothing shrinks.
    threshold = knots.gather(1, piece) + excess / shrinking.gather(1, piece).clamp(min=1)
    return torch.minimum((lengths - threshold.to(lengths.dtype)).clamp(min=0.0), reach).copysign(offsets)


def _sum(values: Tensor) -> Tensor:
    return values.sum(1, keepdim=True, dtype=torch.float64)
