"""The noise floor: random changes of an image as large as an adversarial one, to tell the two sensitivities apart."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from distsens.errors import InputError
from distsens.randomness import normal, sample_keys, uniform

NoiseNorm = Literal["linf", "l2", "l1"]
_ORDER: dict[NoiseNorm, float] = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
# Halving an interval so often leaves the float32 numbers that bound it next to one another.
_HALVINGS = 40


@torch.no_grad()
def same_norm_noise(images: Tensor, adversarial: Tensor, norm: NoiseNorm, keys: Tensor) -> Tensor:
    """Random images in [0, 1] at the same distance from the benign ones as their adversarial twins.

    ``clip(x + t g, 0, 1)`` with a random direction g and, per image, the smallest t for which the norm of the change is
    that of ``x' - x``, found by halving (it rises with t). For ``linf`` g is a random sign for every pixel, the corner
    of the cube, which is as far from x as an image at that distance gets: a floor that is not too low by choice. For
    ``l2`` g is a standard normal, for ``l1`` Laplacian, so that directions are uniform on the norm's sphere.

    Parameters
    ----------
    images, adversarial : (N, C, H, W) in [0, 1].
    norm : in which the two changes are equal; where [0, 1] leaves no room for it, the noise is as far as it gets.
    keys : (N,) of :func:`distsens.randomness.sample_keys`; image i depends on ``keys[i]`` alone.
    """
    if norm not in get_args(NoiseNorm):
        raise InputError("threat.norm", norm, f"allowed are {', '.join(get_args(NoiseNorm))}")
    wanted = _norms(adversarial - images, norm)
    direction = _direction(norm, sample_keys(keys, "noise"), images.shape[1:]).to(images.dtype)
    if norm == "linf":
        return (images + _shaped(wanted, images) * direction).clamp(0.0, 1.0)
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, float(math.prod(images.shape[1:])))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        short = _norms((images + _shaped(middle, images) * direction).clamp(0.0, 1.0) - images, norm) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (images + _shaped(high, images) * direction).clamp(0.0, 1.0)


def _direction(norm: NoiseNorm, keys: Tensor, shape: torch.Size) -> Tensor:
    if norm == "l2":
        return normal(keys, shape)
    halves = 2.0 * uniform(keys, shape) - 1.0
    if norm == "linf":
        return torch.where(halves < 0.0, -1.0, 1.0)
    return (-torch.log1p(-halves.abs())).copysign(halves)


def _norms(change: Tensor, norm: NoiseNorm) -> Tensor:
    values: Tensor = torch.linalg.vector_norm(change.flatten(1), ord=_ORDER[norm], dim=1)
    return values


def _shaped(values: Tensor, images: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (images.ndim - 1))
