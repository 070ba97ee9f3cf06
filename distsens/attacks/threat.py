"""What an attacker may do to an image: stay inside a ball around it, and inside [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from distsens.attacks.projections import project_l1, project_l2
from distsens.errors import InputError
from distsens.randomness import normal, sample_keys, uniform

Norm = Literal["linf", "l2", "l1"]
RandomStart = Literal["uniform", "normal", "none"]

L1_FRACTION = 0.01
"""Part of the coordinates that a step in L1 moves, by default: the 99th percentile of Tramèr and Boneh."""

_NORMAL_START = 1e-3
_ORDER: dict[Norm, float] = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


@dataclass(frozen=True)
class Threat:
    """All images x' in [0, 1] with ``||x' - x||_norm <= eps``.

    Parameters
    ----------
    norm : ``"linf"``, ``"l2"`` or ``"l1"``, over all pixels and channels of an image.
    eps : radius of the ball in pixel space, whose pixels lie in [0, 1] (so 8/255, never 8).
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in _ORDER:
            raise InputError("threat.norm", self.norm, 'allowed are "linf", "l2" and "l1"')
        if not (math.isfinite(self.eps) and self.eps >= 0.0):
            raise InputError("threat.eps", self.eps, "it must be a finite number, 0 or more")
        if self.norm == "linf" and self.eps > 1.0:
            raise InputError("threat.eps", self.eps, "pixels lie in [0, 1], so a linf eps must too (8/255, not 8)")

    def scaled(self, factor: float) -> Threat:
        """The same ball with radius ``factor * eps``."""
        return replace(self, eps=self.eps * factor)

    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        """``||others - images||_norm`` per image: (N,)."""
        distances: Tensor = torch.linalg.vector_norm((others - images).flatten(1), ord=_ORDER[self.norm], dim=1)
        return distances

    def project(self, points: Tensor, images: Tensor) -> Tensor:
        """Nearest point (in L2) of the ball and [0, 1] together; ``images`` lie in [0, 1]."""
        if self.norm == "linf":
            return torch.clamp(points, images - self.eps, images + self.eps).clamp_(0.0, 1.0)
        offsets = points - images
        reach = torch.where(offsets > 0.0, 1.0 - images, images).clamp_(min=0.0)
        nearest = project_l2 if self.norm == "l2" else project_l1
        return nearest(offsets.flatten(1), reach.flatten(1), self.eps).reshape_as(images).add_(images).clamp_(0.0, 1.0)

    def ascend(
        self, points: Tensor, gradients: Tensor, step_size: float, *, l1_fraction: float = L1_FRACTION
    ) -> Tensor:
        """One step of length ``step_size`` in the norm (before projection), steepest in Linf and L2.

        In L1 the steepest step would move one coordinate alone. As in SLIDE (Tramèr and Boneh, "Adversarial Training
        and Robustness for Multiple Perturbations", NeurIPS 2019, algorithm 1) it is shared equally by the
        ``l1_fraction`` of the coordinates that have the largest gradient and are not yet at the end of [0, 1] that it
        points to; by as many as the step is long at the least, since none can move by more than 1.
        """
        if self.norm == "linf":
            return points.add(gradients.sign(), alpha=step_size)
        if self.norm == "l2":
            return points + gradients * (step_size / norms(gradients, 2))
        stuck = torch.where(gradients > 0.0, points >= 1.0, points <= 0.0)
        slopes = gradients.masked_fill(stuck, 0.0).flatten(1)
        coordinates = slopes.shape[1]
        count = min(coordinates, max(math.ceil(l1_fraction * coordinates), math.ceil(step_size)))
        largest = slopes.abs().topk(count, dim=1, sorted=False).indices
        signs = torch.zeros_like(slopes).scatter_(1, largest, slopes.gather(1, largest).sign())
        steps = signs * (step_size / signs.abs().sum(1, keepdim=True).clamp(min=1.0))
        return points + steps.reshape_as(points)

    def start(self, images: Tensor, keys: Tensor, how: RandomStart) -> Tensor:
        """Starting points in the ball.

        ``"uniform"`` draws uniformly from the ball (Madry et al., ICLR 2018), ``"normal"`` adds 0.001 times a standard
        normal (TRADES, Zhang et al., ICML 2019), ``"none"`` starts at the images. Image i depends on ``keys[i]`` alone.
        """
        if how not in get_args(RandomStart):
            raise InputError("attack.random_start", how, 'allowed are "uniform", "normal" and "none"')
        if how == "none":
            return images
        shape = images.shape[1:]
        if how == "normal":
            return self.project(images + _NORMAL_START * normal(keys, shape), images)
        return self.project(images + self.eps * self._uniform(keys, shape), images)

    def _uniform(self, keys: Tensor, shape: torch.Size) -> Tensor:
        """Points (N, *shape) drawn uniformly from the ball of radius 1."""
        if self.norm == "linf":
            return 2.0 * uniform(keys, shape) - 1.0
        last = uniform(sample_keys(keys, "radius"), (1,) * len(shape))
        if self.norm == "l2":
            direction = normal(keys, shape)
            return direction / norms(direction, 2) * last ** (1.0 / shape.numel())
        # Laplace variables over the sum of their sizes and one exponential more (Barthe et al., "A probabilistic
        # approach to the geometry of the l_p^n-ball", Annals of Probability 2005). One number gives sign and size.
        halves = 2.0 * uniform(keys, shape)
        sizes = -torch.log1p(-halves.remainder(1.0))
        return sizes.copysign(halves - 1.0) / (norms(sizes, 1) - torch.log1p(-last))


def norms(x: Tensor, order: float) -> Tensor:
    """Norm per image, shaped to broadcast, never zero (a zero gradient then stays zero).

    Summed in float64: the gradients of a confident model are so small that their float32 squares vanish.
    """
    values = torch.linalg.vector_norm(x.flatten(1), ord=order, dim=1, dtype=torch.float64).clamp(min=1e-30).to(x.dtype)
    shaped: Tensor = values.reshape(-1, *(1,) * (x.ndim - 1))
    return shaped
