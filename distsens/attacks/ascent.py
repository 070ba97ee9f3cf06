"""The two ways in which Auto-PGD climbs a loss: with momentum in Linf and L2, with sparse steps in L1.

Both hold what they know of each image in tensors with one row per image, so that an image leaves by leaving out a row,
and no image's climb depends on another's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from distsens.attacks.threat import Threat, norms

_MOMENTUM = 0.25
_ENOUGH_RISES = 0.75
_SPARSITY_START = 0.2
_SPARSITY_FACTOR = 1.5
_SPARSITY_PERIOD = 4  # Percent of the steps.
_SHRUNK = 0.95
_SIZE_FACTOR = 1.5
_SIZE_RANGE = 10.0


@dataclass(frozen=True)
class Ascent(ABC):
    """Where a climb is with each of N images.

    rows : (N,) positions of the images in the batch.
    images : (N, C, H, W), the centres of the balls.
    aims : (N, 1) labels, or (N, 2) labels and target classes: what the loss takes beside the logits.
    points, gradients : (N, C, H, W), the iterates and the gradients of the loss there.
    losses : (N,) losses of the iterates that the last step led to, also where the climb then went back to the best.
    best, best_losses, best_gradients : the iterate with the largest loss so far, with its loss and gradient.
    sizes : (N,) step sizes.
    """

    rows: Tensor
    images: Tensor
    aims: Tensor
    points: Tensor
    losses: Tensor
    gradients: Tensor
    best: Tensor
    best_losses: Tensor
    best_gradients: Tensor
    sizes: Tensor

    def kept(self, keep: Tensor) -> Self:
        """Only the images chosen by a mask (N,)."""
        return replace(self, **{field.name: getattr(self, field.name)[keep] for field in fields(self)})

    @abstractmethod
    def moved(self, threat: Threat, step: int) -> Self:
        """The iterates after ``step`` steps, whose losses are not yet known."""

    def observed(self, losses: Tensor, gradients: Tensor) -> Self:
        """With the loss and gradient at the iterates."""
        better = losses > self.best_losses
        return replace(
            self,
            losses=losses,
            gradients=gradients,
            best=_choose(better, self.points, self.best),
            best_losses=torch.where(better, losses, self.best_losses),
            best_gradients=_choose(better, gradients, self.best_gradients),
        )

    @abstractmethod
    def adapted(self, threat: Threat, step: int, steps: int) -> Self:
        """After ``step`` of ``steps`` steps: the step sizes adapted, if this is the time for it."""


@dataclass(frozen=True)
class MomentumAscent(Ascent):
    """Auto-PGD in Linf and L2.

    With z the projected step of size eta along the gradient (its sign in Linf, its direction in L2), the next iterate
    is ``project(x + 0.75 (z - x) + 0.25 (x - previous))``; the first one is z. eta starts at 2 eps. At the checkpoints
    ``w_j`` it is halved, and the climb goes on from its best iterate, where since ``w_{j-1}`` the loss rose in less
    than 75 % of the steps, or else where neither eta was halved at ``w_{j-1}`` nor the largest loss has grown since.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    ICML 2020, algorithm 1.

    previous : (N, C, H, W) iterates before the last step; equal to the points before the first.
    rises : (N,) number of steps since the last checkpoint in which the loss rose.
    checked_losses, halved : (N,) largest loss at the last checkpoint, and whether the step size was halved there.
    """

    previous: Tensor
    rises: Tensor
    checked_losses: Tensor
    halved: Tensor

    def moved(self, threat: Threat, step: int) -> Self:
        """One step along the gradient, and after the first step a part of the last step again."""
        towards = self.gradients.sign() if threat.norm == "linf" else self.gradients / norms(self.gradients, 2)
        points = threat.project(self.points + _shaped(self.sizes, towards) * towards, self.images)
        if step > 1:
            mixed = (1.0 - _MOMENTUM) * (points - self.points) + _MOMENTUM * (self.points - self.previous)
            points = threat.project(self.points + mixed, self.images)
        return replace(self, points=points, previous=self.points)

    def observed(self, losses: Tensor, gradients: Tensor) -> Self:
        """With the loss and gradient at the iterates, and one rise more where the loss rose."""
        return replace(super().observed(losses, gradients), rises=self.rises + (losses > self.losses))

    def adapted(self, threat: Threat, step: int, steps: int) -> Self:  # noqa: ARG002
        """At a checkpoint, half the step size where it did not lead further."""
        marks = (0, *checkpoints(steps))
        if step not in marks:
            return self
        window = step - marks[marks.index(step) - 1]
        stalled = ~self.halved & (self.best_losses <= self.checked_losses)
        halved = (self.rises < _ENOUGH_RISES * window) | stalled
        return replace(
            self,
            points=_choose(halved, self.best, self.points),
            gradients=_choose(halved, self.best_gradients, self.gradients),
            sizes=torch.where(halved, self.sizes / 2.0, self.sizes),
            rises=torch.zeros_like(self.rises),
            checked_losses=self.best_losses,
            halved=halved,
        )


@dataclass(frozen=True)
class SparseAscent(Ascent):
    """Auto-PGD in L1.

    A step of length eta goes along the signs of the k largest components of the gradient, and is projected onto ball
    and [0, 1] together. eta starts at eps, k at 1/1.5 of the number of coordinates in which the start differs from the
    image, and at most a fifth of them all. Every 4 % of the steps k becomes 1/1.5 of the number of coordinates in which
    the best iterate differs. Where k shrank by more than 5 % eta is eps again and the climb goes on from the best
    iterate; elsewhere eta is divided by 1.5, down to eps / 10.

    Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021, section 3.

    sparsity : (N,) k, not rounded.
    """

    sparsity: Tensor

    def moved(self, threat: Threat, step: int) -> Self:  # noqa: ARG002
        """One step along the largest components of the gradient."""
        slopes = self.gradients.flatten(1)
        order = slopes.abs().argsort(dim=1, descending=True, stable=True)
        ranks = torch.arange(slopes.shape[1], device=slopes.device).expand_as(order)
        largest = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, ranks < self.sparsity[:, None])
        signs = torch.where(largest, slopes.sign(), 0.0)
        steps = signs * (self.sizes / signs.abs().sum(1).clamp(min=1.0))[:, None]
        return replace(self, points=threat.project(self.points + steps.reshape_as(self.points), self.images))

    def adapted(self, threat: Threat, step: int, steps: int) -> Self:
        """Every 4 % of the steps, as sparse as the best iterate suggests."""
        if step % -(-_SPARSITY_PERIOD * steps // 100):
            return self
        sparsity = _suggested_sparsity(self.best, self.images)
        shrunk = sparsity < _SHRUNK * self.sparsity
        smaller = (self.sizes / _SIZE_FACTOR).clamp(min=threat.eps / _SIZE_RANGE)
        return replace(
            self,
            points=_choose(shrunk, self.best, self.points),
            gradients=_choose(shrunk, self.best_gradients, self.gradients),
            sizes=torch.where(shrunk, threat.eps, smaller),
            sparsity=sparsity,
        )


def begin(
    threat: Threat, rows: Tensor, images: Tensor, aims: Tensor, points: Tensor, losses: Tensor, gradients: Tensor
) -> Ascent:
    """The climb for this norm from starting points, with the losses and gradients there; see :class:`Ascent`."""
    start = (rows, images, aims, points, losses, gradients, points, losses, gradients)
    if threat.norm == "l1":
        most = _SPARSITY_START * images.shape[1:].numel()
        sparsity = _suggested_sparsity(points, images).clamp(max=most)
        return SparseAscent(*start, sizes=torch.full_like(losses, threat.eps), sparsity=sparsity)
    return MomentumAscent(
        *start,
        sizes=torch.full_like(losses, 2.0 * threat.eps),
        previous=points,
        rises=torch.zeros_like(rows),
        checked_losses=losses,
        halved=torch.zeros_like(rows, dtype=torch.bool),
    )


def checkpoints(steps: int) -> tuple[int, ...]:
    """Steps ``w_j = ceil(p_j * steps)`` after which a step size may be halved.

    ``p_1 = 0.22`` and ``p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)``, here in percent. Croce and Hein, ICML 2020,
    section 3.1.
    """
    marks, percent, period = [], 22, 22
    while percent <= 100:
        marks.append(-(-percent * steps // 100))
        period = max(period - 3, 6)
        percent += period
    return tuple(sorted(set(marks)))


def _suggested_sparsity(points: Tensor, images: Tensor) -> Tensor:
    """1/1.5 of the number of coordinates that differ, 1 or more: (N,)."""
    return ((points != images).flatten(1).sum(1) / _SPARSITY_FACTOR).clamp(min=1.0)


def _choose(chosen: Tensor, these: Tensor, those: Tensor) -> Tensor:
    """Per image: these where chosen, those elsewhere."""
    return torch.where(_shaped(chosen, these), these, those)


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))
