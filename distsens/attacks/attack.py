"""An attack with its settings: one loop of steps along the gradient makes them all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distsens.attacks.image_gradients import finite, image_gradients
from distsens.attacks.losses import AttackLoss, cross_entropy
from distsens.attacks.threat import L1_FRACTION, RandomStart, Threat, norms
from distsens.attacks.view import Logits, attack_view
from distsens.errors import InputError
from distsens.logits import predictions
from distsens.randomness import sample_keys

# Resizing and colour conversion leave pixels this far outside [0, 1].
_PIXEL_TOLERANCE = 1e-4


@dataclass(frozen=True)
class GradientAttack:
    """What trains, what selects and what judges are three of these: ``x' <- project(x' + step)``, ``steps`` times.

    The last iterate counts. With restarts an attempt that succeeds wins, and among equals the one with the better loss.
    Components of a gradient that are not finite count as 0 (see :func:`finite`): an example is always a number.

    Parameters
    ----------
    threat : the ball.
    steps, step_size : number and length (in the norm, pixel space) of the steps; see :meth:`Threat.ascend`.
    random_start : see :meth:`Threat.start`.
    restarts : independent attempts per image; only useful with a random start.
    precision : type of the forward and backward passes, e.g. ``torch.bfloat16``; default float32.
    momentum : 0, or the decay of the sum of the L1-normalised gradients along which the steps then go (MIM).
    l1_fraction : part of the coordinates that a step in L1 moves.
    loss : the attack's own loss, whatever its caller asks for; None leaves it to the caller.

    Raises
    ------
    InputError : a setting is out of range.
    """

    threat: Threat
    steps: int
    step_size: float
    random_start: RandomStart = "uniform"
    restarts: int = 1
    precision: torch.dtype | None = None
    momentum: float = 0.0
    l1_fraction: float = L1_FRACTION
    loss: AttackLoss | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError("attack.steps", self.steps, "it must be 1 or more")
        if not (math.isfinite(self.step_size) and self.step_size >= 0.0):
            raise InputError("attack.step_size", self.step_size, "it must be a finite number, 0 or more")
        if self.restarts < 1:
            raise InputError("attack.restarts", self.restarts, "it must be 1 or more")
        if not (math.isfinite(self.momentum) and self.momentum >= 0.0):
            raise InputError("attack.momentum", self.momentum, "it must be a finite number, 0 or more")
        if not 0.0 < self.l1_fraction <= 1.0:
            raise InputError("attack.l1_fraction", self.l1_fraction, "it must lie above 0 and be at most 1")

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        *,
        loss: AttackLoss = cross_entropy,
        targeted: bool = False,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images.

        Parameters
        ----------
        model : any classifier of [0, 1] images; left exactly as it was (see :func:`attack_view`).
        images : (N, C, H, W) in [0, 1].
        targets : what the loss compares logits with: labels (N,), or benign logits (N, K) for a KL divergence.
        loss : per-image loss to make large.
        targeted : make it small instead: the targets are what the images are to be taken for.
        keys : (N,) integers; the random start of image i depends on ``keys[i]`` alone. Default: 0 to N-1.

        Returns
        -------
        (N, C, H, W) adversarial images, detached, inside the ball and [0, 1].

        Raises
        ------
        InputError : a key is missing, or the images are not in [0, 1].
        """
        chosen = self.loss or loss
        sign = -1.0 if targeted else 1.0
        with attack_view(model, precision=self.precision) as logits:
            # Clones, because autograd cannot save a tensor that the caller made in inference mode.
            images, targets = images.detach().clone(), targets.detach().clone()
            check_pixels(images)
            if keys is None:
                keys = torch.arange(len(images), device=images.device)
            if len(keys) != len(images):
                raise InputError("keys", tuple(keys.shape), f"one key for each of the {len(images)} images")

            def goal(outputs: Tensor) -> Tensor:
                return sign * chosen(outputs, targets)

            labels = targets if targets.ndim == 1 else targets.argmax(1)
            best, best_score = images, None
            for restart in range(self.restarts):
                start = self.threat.start(images, sample_keys(keys, "start", restart), self.random_start)
                points = self._climb(logits, goal, start, images)
                if self.restarts == 1:
                    return points
                with torch.no_grad():
                    outputs = logits(points)
                    score = _score(goal(outputs), (predictions(outputs) == labels) == targeted)
                if best_score is None:
                    best, best_score = points, score
                else:
                    better = score > best_score
                    best = torch.where(better.reshape(-1, *(1,) * (images.ndim - 1)), points, best)
                    best_score = torch.where(better, score, best_score)
            return best

    def _climb(self, logits: Logits, goal: Callable[[Tensor], Tensor], points: Tensor, images: Tensor) -> Tensor:
        """The last of ``steps`` iterates that make the goal large."""
        velocity = None
        for _ in range(self.steps):
            points = points.detach().requires_grad_()
            direction = image_gradients(goal(logits(points)), points)
            with torch.no_grad():
                if self.momentum > 0.0:
                    direction = direction / norms(direction, 1)
                    if velocity is not None:
                        # Finite, because a momentum above 1 makes it grow without end.
                        direction = finite(direction.add_(velocity, alpha=self.momentum))
                    velocity = direction
                points = self.threat.ascend(points, direction, self.step_size, l1_fraction=self.l1_fraction)
                points = self.threat.project(points, images)
        return points

    @property
    def gradient_evaluations(self) -> int:
        """Gradients computed per image."""
        return self.steps * self.restarts

    def scaled(self, factor: float) -> GradientAttack:
        """The same attack in a ball, and with steps, ``factor`` times as large (for an eps warm-up)."""
        return replace(self, threat=self.threat.scaled(factor), step_size=self.step_size * factor)


def check_pixels(images: Tensor) -> None:
    """Refuse images outside [0, 1]: eps would not mean what it says, and the examples would be clipped wildly.

    So it would in types narrower than float32, whose rounding is of the size of a small eps.
    """
    if images.dtype not in (torch.float32, torch.float64):
        allowed = "must be float32 (or float64), whatever type the model computes in: its inputs are cast"
        raise InputError("images", str(images.dtype).removeprefix("torch."), allowed)
    if len(images) == 0:
        return
    lowest, highest = (bound.item() for bound in torch.aminmax(images))
    if not (lowest >= -_PIXEL_TOLERANCE and highest <= 1.0 + _PIXEL_TOLERANCE):
        raise InputError("images", (lowest, highest), "pixels must lie in [0, 1]; normalise inside the model")


def _score(goals: Tensor, succeeded: Tensor) -> Tensor:
    """Order of attempts: the goal squeezed into (-1/2, 1/2), one more where the attack succeeded."""
    goals = goals.double().nan_to_num()
    return 0.5 * goals / (1.0 + goals.abs()) + succeeded
