"""Carlini and Wagner's L2 attack: distance against margin, weighed by a binary search."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distsens.attacks.closest import Closest, Search
from distsens.attacks.found import Found
from distsens.attacks.image_gradients import image_gradients
from distsens.attacks.losses import margin
from distsens.attacks.threat import Threat
from distsens.attacks.view import attack_view
from distsens.errors import InputError

_DECAYS = (0.9, 0.999)
_ADAM_EPS = 1e-8
_INSIDE = 1.0 - 1e-6
_GROWTH = 10.0


@dataclass(frozen=True)
class CarliniWagner:
    """Adam on ``||x - x_0||_2^2 + c * max(confidence - margin(x), 0)`` with ``x = (tanh(w) + 1) / 2``.

    Each image has its own c: after runs that all gave no example ten times as large as the last, and otherwise halfway
    between the largest c that gave none and the smallest that gave one. Carlini and Wagner, "Towards Evaluating the
    Robustness of Neural Networks", IEEE S&P 2017, sections V and VI.A, with f_6 (see :func:`margin`), untargeted; Adam
    as in Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1.

    Parameters
    ----------
    threat : of norm L2; its ball bounds what :meth:`__call__` gives.
    steps : of Adam, in each run; the point before the first and those after each are looked at.
    binary_search_steps : runs, from the image each.
    lr : Adam's step size, in w.
    confidence : margin by which examples are to be misclassified.
    initial_const : the first c.

    Raises
    ------
    InputError : a setting is out of range.
    """

    threat: Threat
    steps: int = 1000
    binary_search_steps: int = 9
    lr: float = 0.01
    confidence: float = 0.0
    initial_const: float = 1e-3

    def __post_init__(self) -> None:
        if self.threat.norm != "l2":
            raise InputError("threat.norm", self.threat.norm, 'this attack of Carlini and Wagner is for "l2"')
        if self.steps < 1:
            raise InputError("attack.steps", self.steps, "it must be 1 or more")
        if self.binary_search_steps < 1:
            raise InputError("attack.binary_search_steps", self.binary_search_steps, "it must be 1 or more")
        if not (math.isfinite(self.lr) and self.lr > 0.0):
            raise InputError("attack.lr", self.lr, "it must be a finite number above 0")
        if not (math.isfinite(self.confidence) and self.confidence >= 0.0):
            raise InputError("attack.confidence", self.confidence, "it must be a finite number, 0 or more")
        if not (math.isfinite(self.initial_const) and self.initial_const > 0.0):
            raise InputError("attack.initial_const", self.initial_const, "it must be a finite number above 0")

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, keys: Tensor | None = None) -> Found:
        """Attack; see :class:`JudgingAttack`. Nothing is random."""
        return self.closest(model, images, labels, keys=keys).within(self.threat, images)

    def closest(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        keys: Tensor | None = None,
    ) -> Closest:
        """The examples, wherever they lie; arguments as in :class:`JudgingAttack`."""
        with attack_view(model) as logits:
            search = Search(logits, self.threat, images, labels, keys, self.confidence)
            constants = torch.full((len(search.rows),), self.initial_const, device=images.device)
            lower, upper = torch.zeros_like(constants), torch.full_like(constants, torch.inf)
            for _ in range(self.binary_search_steps if len(search.rows) else 0):
                reached = self._minimise(search, constants)
                lower, upper = torch.where(reached, lower, constants), torch.where(reached, constants, upper)
                constants = torch.where(upper.isinf(), _GROWTH * constants, 0.5 * (lower + upper))
            return search.closest()

    def _minimise(self, search: Search, constants: Tensor) -> Tensor:
        """One run of Adam with these constants (M,); which images (M,) had an example on its way."""
        rows = search.rows
        images, labels = search.images[rows], search.labels[rows]
        variables = torch.atanh((2.0 * images - 1.0).clamp(-_INSIDE, _INSIDE))
        mean, square = torch.zeros_like(variables), torch.zeros_like(variables)
        reached = torch.zeros_like(constants, dtype=torch.bool)
        for step in range(1, self.steps + 2):
            variables = variables.detach().requires_grad_()
            points = 0.5 * (torch.tanh(variables) + 1.0)
            outputs, excess = search.show(rows, points)
            reached |= excess > 0.0
            if step > self.steps:  # What the last step led to was looked at as well.
                break
            distances = (points - images).square().flatten(1).sum(1)
            losses = distances + constants * (self.confidence - margin(outputs, labels)).clamp(min=0.0)
            gradients = image_gradients(losses, variables)
            with torch.no_grad():
                mean.lerp_(gradients, 1.0 - _DECAYS[0])
                square.lerp_(gradients.square(), 1.0 - _DECAYS[1])
                corrected = (square / (1.0 - _DECAYS[1] ** step)).sqrt_().add_(_ADAM_EPS)
                variables = variables - self.lr / (1.0 - _DECAYS[0] ** step) * mean / corrected
        return reached
