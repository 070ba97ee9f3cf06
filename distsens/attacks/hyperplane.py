"""The decision boundary of a linearised classifier: what part of it is nearest, and the shortest way there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distsens.attacks.image_gradients import image_gradients
from distsens.attacks.threat import Norm, norms

_DUAL: dict[Norm, float] = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
_TINY = torch.finfo(torch.float32).tiny
_FARTHEST = 1e30


def nearest_boundary(
    outputs: Tensor, points: Tensor, labels: Tensor, others: Tensor, norm: Norm
) -> tuple[Tensor, Tensor, Tensor]:
    """Value v and slope w of ``logits_k - logits_label`` for the class k whose boundary, linearised, is nearest.

    Without bounds on the pixels its distance is ``|v| / ||w||_q``, q being the dual of the norm: Moosavi-Dezfooli et
    al., "DeepFool: a simple and accurate method to fool deep neural networks", CVPR 2016, equation 8.

    Parameters
    ----------
    outputs : (N, K) logits, with the graph that leads to ``points``, which is freed.
    points : (N, C, H, W), where the classifier is linearised.
    labels, others : (N,), and the (N, M) classes among which k is chosen.

    Returns
    -------
    (N,) v, negative where the label's logit is the larger one, (N, C, H, W) w, and (N,) distances. Where no class has
    a finite logit and a slope, v and w are 0 and the distance is very large.
    """
    gaps = outputs.gather(1, others) - outputs.gather(1, labels[:, None])
    value, distance = torch.zeros_like(gaps[:, 0]), torch.full_like(gaps[:, 0], _FARTHEST)
    slope = torch.zeros_like(points)
    for column, gap in enumerate(gaps.unbind(1)):
        gradient = image_gradients(gap, points, retain_graph=column + 1 < others.shape[1])
        gap = gap.detach()
        away = gap.abs() / norms(gradient, _DUAL[norm]).flatten()
        nearer = away < distance
        value, distance = torch.where(nearer, gap, value), torch.where(nearer, away, distance)
        slope = torch.where(nearer.reshape(-1, *(1,) * (points.ndim - 1)), gradient, slope)
    return value, slope, distance


def move_to_hyperplane(points: Tensor, normals: Tensor, values: Tensor, norm: Norm) -> Tensor:
    """Shortest m, in the norm, with ``<w, m> = -v`` and ``z + m`` in [0, 1].

    Where no point of [0, 1] is on the hyperplane, m leads to one that is as close to it as any. A coordinate moves
    against w where v is positive and along w where it is negative, by at most the room u_i that it has there; the
    lengths ``l_i <= u_i`` have to satisfy ``sum |w_i| l_i = |v|``. By the optimality conditions, for one t,
    ``l_i = min(t, u_i)`` in Linf and ``l_i = min(t |w_i|, u_i)`` in L2; in L1 the coordinates with the largest
    ``|w_i|`` are used up in turn. Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive
    boundary attack", ICML 2020, equation 6.

    Parameters
    ----------
    points : (N, D), z, in [0, 1].
    normals, values : (N, D) and (N,), w and v.
    """
    weights = normals.abs()
    # Gradients may be so small that their float32 squares vanish.
    peak = weights.amax(1, keepdim=True).clamp(min=_TINY)
    weights, need = weights / peak, values[:, None].double().abs() / peak
    signs = -values[:, None].sign() * normals.sign()
    room = (signs.clamp(min=0.0) - points).abs()
    if norm == "l1":
        lengths = _used_up_in_turn(weights, room, need)
    else:
        lengths = _moved_together(weights, room, need, weights if norm == "l2" else weights.sign())
    return signs * lengths


def _moved_together(weights: Tensor, room: Tensor, need: Tensor, speeds: Tensor) -> Tensor:
    """``l = min(t * speed, room)`` with ``<weight, l> = need``.

    The left side is increasing, concave and piecewise linear in t: Newton's method from below does not overshoot, and
    ends as soon as no further coordinate runs out of room.
    """
    time = torch.zeros_like(need)
    gain, slope = weights * room, weights * speeds
    while True:
        moving = (time.to(room.dtype) * speeds < room).to(room.dtype)
        left = need - (gain * (1.0 - moving)).sum(1, keepdim=True, dtype=torch.float64)
        rate = (slope * moving).sum(1, keepdim=True, dtype=torch.float64)
        later = torch.maximum((left / rate.clamp(min=1.0 / _FARTHEST)).clamp(max=_FARTHEST), time)
        if not (later > time).any():  # So written, NaN ends it too.
            return torch.minimum(time.to(room.dtype) * speeds, room)
        time = later


def _used_up_in_turn(weights: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Room of the coordinates with the largest weights, until ``<weight, l> = need``."""
    weights, order = weights.sort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    gain = (weights * room).double()
    left = (need - (gain.cumsum(1) - gain)).clamp(min=0.0).to(room.dtype)
    return torch.empty_like(room).scatter_(1, order, torch.minimum(left / weights.clamp(min=_TINY), room))
