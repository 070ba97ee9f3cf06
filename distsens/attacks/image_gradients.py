"""Gradients with respect to images, as all attacks take them: finite."""

from __future__ import annotations

import torch
from torch import Tensor

from distsens.errors import InputError

# Squares of such numbers, summed over an image, are still float32 numbers.
_LARGEST = 1e15


def image_gradients(values: Tensor, points: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Gradient of the sum of ``values`` (N,) with respect to ``points`` (N, C, H, W), see :func:`finite`.

    Raises
    ------
    InputError : there is none, because the model cuts the graph, by rounding in NumPy or the like.
    """
    gradients = None
    if values.requires_grad:
        (gradients,) = torch.autograd.grad(values.sum(), points, retain_graph=retain_graph, allow_unused=True)
    if gradients is None:
        allowed = "this attack needs them with respect to the images; one without, such as Square, does not"
        raise InputError("model", "logits without a gradient", allowed)
    return finite(gradients)


def finite(gradients: Tensor) -> Tensor:
    """The gradients with 0 for components that are NaN or infinite, and none beyond ``+-1e15``.

    A square root at a black pixel has an infinite slope, and what the chain rule makes of that may be NaN. Such a
    component says nothing about where to go, and must not spoil those that do, with which it shares a norm: so it moves
    nothing, and an image of which nothing else is known stays where it is.
    """
    return gradients.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp_(-_LARGEST, _LARGEST)
