"""FAB: along the decision boundary towards the image, by projections onto the linearised boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distsens.attacks.closest import Closest, Search
from distsens.attacks.found import Found
from distsens.attacks.hyperplane import move_to_hyperplane, nearest_boundary
from distsens.attacks.threat import Threat
from distsens.attacks.view import attack_view
from distsens.errors import InputError
from distsens.randomness import normal, sample_keys, uniform

_FINAL_STEPS = 3
_FINAL_REACH = 0.9


@dataclass(frozen=True)
class FAB:
    """Fast adaptive boundary attack, which has no step size: what is nearest on the linearised boundary is the step.

    ``x <- clip((1 - a) (x + eta d) + a (x_0 + eta d_0))``, where d and d_0 are the shortest moves, in [0, 1], from x
    and from the image x_0 to the boundary linearised at x, and ``a = min(|d| / (|d| + |d_0|), alpha_max)``. A
    misclassified x is followed by ``x_0 + beta (x - x_0)``. Restarts begin at random, half as far from the image as the
    closest example or, if that is less, as eps. At the end the closest example is drawn nearer along its line to the
    image. Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020,
    algorithm 1.

    The boundary is that with one other class after the other, the likeliest first: Croce and Hein, "Reliable evaluation
    of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML 2020, section 5. A point that is
    taken for any other class is an example.

    Parameters
    ----------
    threat : its norm is made small; its ball bounds what :meth:`__call__` gives.
    steps, restarts : for each target.
    targets : number of other classes; 0 takes at each step the nearest boundary with any class (the original attack).
    alpha_max, eta, beta : see above.

    Raises
    ------
    InputError : a setting is out of range.
    """

    threat: Threat
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError("attack.steps", self.steps, "it must be 1 or more")
        if self.restarts < 1:
            raise InputError("attack.restarts", self.restarts, "it must be 1 or more")
        if self.targets < 0:
            raise InputError("attack.targets", self.targets, "it must be 0 (any class) or more")
        if not 0.0 <= self.alpha_max <= 1.0:
            raise InputError("attack.alpha_max", self.alpha_max, "it must be between 0 and 1")
        if not (math.isfinite(self.eta) and self.eta >= 1.0):
            raise InputError("attack.eta", self.eta, "it must be a finite number, 1 or more")
        if not 0.0 < self.beta < 1.0:
            raise InputError("attack.beta", self.beta, "it must lie between 0 and 1")

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, keys: Tensor | None = None) -> Found:
        """Attack; see :class:`JudgingAttack`."""
        return self.closest(model, images, labels, keys=keys).within(self.threat, images)

    def closest(self, model: nn.Module, images: Tensor, labels: Tensor, *, keys: Tensor | None = None) -> Closest:
        """The examples, wherever they lie; arguments as in :class:`JudgingAttack`."""
        with attack_view(model) as logits:
            search = Search(logits, self.threat, images, labels, keys)
            columns = search.others.split(1, dim=1)[: self.targets] if self.targets else (search.others,)
            for target, others in enumerate(columns):
                for restart in range(self.restarts):
                    start = search.images[search.rows]
                    if restart > 0:
                        start = self._near(search, sample_keys(search.keys[search.rows], "fab", target, restart))
                    self._follow(search, start, others)
            self._draw_nearer(search)
            return search.closest()

    def _near(self, search: Search, keys: Tensor) -> Tensor:
        """Random points half as far from the images as the closest examples, or as eps."""
        images = search.images[search.rows]
        shape = images.shape[1:]
        offsets = 2.0 * uniform(keys, shape) - 1.0 if self.threat.norm == "linf" else normal(keys, shape)
        lengths = self.threat.distance(torch.zeros_like(images), offsets)
        radius = 0.5 * search.distances(search.rows).clamp(max=self.threat.eps)
        return (images + _shaped(radius / lengths, images) * offsets).clamp(0.0, 1.0)

    def _follow(self, search: Search, points: Tensor, others: Tensor) -> None:
        """One run from these points along the boundary with the other classes (M, T)."""
        rows = search.rows
        for _ in range(self.steps):
            if len(rows) == 0:
                return
            images = search.images[rows]
            points = points.requires_grad_()
            outputs, _ = search.show(rows, points)
            value, slope, _ = nearest_boundary(outputs, points, search.labels[rows], others, self.threat.norm)
            with torch.no_grad():
                nexts = self._step(points, images, value, slope)
                _, excess = search.show(rows, nexts)
                nexts = torch.where(_shaped(excess > 0.0, nexts), images + self.beta * (nexts - images), nexts)
                # A step that changed nothing, because there is no slope, is followed by others like it.
                moved = (nexts != points).flatten(1).any(1)
            if not moved.all():
                rows, others, nexts = rows[moved], others[moved], nexts[moved]
            points = nexts
        # The last points have been drawn towards the images since they were looked at.
        if len(rows):
            with torch.no_grad():
                search.show(rows, points)

    def _step(self, points: Tensor, images: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """The next points, from the boundary's value and slope at these."""
        value_at_images = value + (slope * (images - points)).flatten(1).sum(1, dtype=torch.float64).to(value.dtype)
        moves = move_to_hyperplane(
            torch.cat([points, images]).flatten(1),
            torch.cat([slope, slope]).flatten(1),
            torch.cat([value, value_at_images]),
            self.threat.norm,
        ).reshape(2, *points.shape)
        ahead, aside = self.threat.distance(torch.zeros_like(moves).flatten(0, 1), moves.flatten(0, 1)).chunk(2)
        alpha = _shaped((ahead / (ahead + aside).clamp(min=1e-30)).clamp(max=self.alpha_max), points)
        onward, anew = points + self.eta * moves[0], images + self.eta * moves[1]
        return ((1.0 - alpha) * onward + alpha * anew).clamp(0.0, 1.0)

    def _draw_nearer(self, search: Search) -> None:
        """Find the boundary between images and their closest examples by regula falsi.

        It aims a tenth short of where the boundary seems to be: the end that is an example then moves as well.
        """
        rows = search.rows[search.distances(search.rows).isfinite()]
        if len(rows) == 0:
            return
        inner, outer = search.images[rows], search.examples(rows)
        with torch.no_grad():
            below, above = (search.show(rows, points)[1] for points in (inner, outer))
            for _ in range(_FINAL_STEPS):
                part = (_FINAL_REACH * above / (above - below)).clamp(0.0, 1.0)
                points = outer + _shaped(part, outer) * (inner - outer)
                _, excess = search.show(rows, points)
                wrong = excess > 0.0
                below, above = torch.where(wrong, below, excess), torch.where(wrong, excess, above)
                wrong = _shaped(wrong, points)
                inner, outer = torch.where(wrong, inner, points), torch.where(wrong, points, outer)


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    """Values per image, shaped to broadcast."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
