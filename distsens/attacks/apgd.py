"""Auto-PGD: steps along the gradient whose size follows from how the attack gets on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from distsens.attacks.ascent import Ascent, begin
from distsens.attacks.found import Found
from distsens.attacks.image_gradients import image_gradients
from distsens.attacks.losses import cross_entropy, dlr, targeted_dlr
from distsens.attacks.tally import Tally, inner
from distsens.attacks.threat import Threat
from distsens.attacks.view import Logits, attack_view
from distsens.errors import InputError
from distsens.logits import predictions
from distsens.randomness import sample_keys

APGDLoss = Literal["ce", "dlr"]


@dataclass(frozen=True)
class APGD:
    """Auto-PGD, a :class:`JudgingAttack` (see :class:`MomentumAscent` and :class:`SparseAscent` for its steps).

    Each attempt starts at a random point of the ball. In L1 it climbs in a ball of 3 eps first (30 % of the steps),
    then of 2 eps (30 %) and of eps (40 %), each time from the best point so far, projected. An image that is
    misclassified inside its ball leaves the batch at once; misclassified means that the mean logits are.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    ICML 2020; in L1 Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML
    2021.

    Parameters
    ----------
    threat : the ball.
    loss : ``"ce"`` or ``"dlr"``; see :func:`cross_entropy` and :func:`dlr`.
    steps : per attempt.
    restarts : attempts per image, or per image and target class.
    targets : 0, or towards how many classes, those with the largest logits on the image itself first, to go in turn
        (:func:`targeted_dlr`, so that the loss must be ``"dlr"``); no more than the model has.
    eot : forwards per point whose logits, losses and gradients are averaged (Athalye et al., "Obfuscated Gradients
        Give a False Sense of Security", ICML 2018): more than 1 is for a model that is random in eval mode too. It
        draws from PyTorch's global generators, which are afterwards as they were.

    Raises
    ------
    InputError : a setting is out of range, or the model has too few classes for the loss.
    """

    threat: Threat
    loss: APGDLoss = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 0
    eot: int = 1

    def __post_init__(self) -> None:
        if self.loss not in get_args(APGDLoss):
            raise InputError("attack.loss", self.loss, 'allowed are "ce" and "dlr"')
        for name in ("steps", "restarts", "eot"):
            if getattr(self, name) < 1:
                raise InputError(f"attack.{name}", getattr(self, name), "it must be 1 or more")
        if self.targets < 0:
            raise InputError("attack.targets", self.targets, "it must be 0 or more")
        if self.targets and self.loss != "dlr":
            raise InputError("attack.targets", self.targets, 'only the loss "dlr" has target classes')

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, keys: Tensor | None = None) -> Found:
        """Attack; see :class:`JudgingAttack`."""
        with attack_view(model) as logits:
            tally = Tally(images, labels, keys)
            everything = tally.left
            with torch.no_grad():
                outputs = torch.stack([logits(tally.images) for _ in range(self.eot)]).mean(0)
            aims = self._aims(outputs, tally.labels)
            broken = predictions(outputs) != tally.labels
            tally.count(everything, self.eot)
            tally.record(everything, tally.images, self._loss(outputs, *aims[0].unbind(1)), broken)
            for turn, aim in enumerate(aims):
                for restart in range(self.restarts):
                    if len(rows := tally.left):
                        keys = sample_keys(tally.keys[rows], "apgd", turn, restart)
                        self._attempt(logits, tally, rows, aim[rows], keys)
            return tally.found()

    @property
    def _loss(self) -> Callable[..., Tensor]:
        if self.loss == "ce":
            return cross_entropy
        return targeted_dlr if self.targets else dlr

    def _aims(self, outputs: Tensor, labels: Tensor) -> list[Tensor]:
        """What the loss takes beside logits, one for each turn: (N, 1) labels, or (N, 2) labels and targets."""
        if not self.targets:
            return [labels[:, None]]
        others = outputs.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True)[:, :-1]
        return [torch.stack([labels, target], dim=1) for target in others[:, : self.targets].unbind(1)]

    def _attempt(self, logits: Logits, tally: Tally, rows: Tensor, aims: Tensor, keys: Tensor) -> None:
        """One attempt on the images at these positions, noted in the tally."""
        images = tally.images[rows]
        *larger, (ball, last_steps) = phases = self._phases()
        points = phases[0][0].start(images, keys, "uniform")
        for threat, steps in larger:
            points = self._climb(logits, tally, threat, steps, rows, aims, threat.project(points, images)).best
        left = self._climb(logits, tally, ball, last_steps, rows, aims, ball.project(points, images), release=True)
        tally.record(left.rows, left.best, left.best_losses, torch.zeros_like(left.rows, dtype=torch.bool))

    def _climb(
        self,
        logits: Logits,
        tally: Tally,
        threat: Threat,
        steps: int,
        rows: Tensor,
        aims: Tensor,
        points: Tensor,
        *,
        release: bool = False,
    ) -> Ascent:
        """The last state of a climb in this ball; with ``release`` of the images never misclassified in it alone."""

        def released(ascent: Ascent, broken: Tensor) -> Ascent:
            if not (release and broken.any()):
                return ascent
            tally.record(ascent.rows[broken], ascent.points[broken], ascent.losses[broken], broken[broken])
            return ascent.kept(~broken)

        broken, losses, gradients = self._look(logits, tally, rows, aims, points)
        ascent = released(begin(threat, rows, tally.images[rows], aims, points, losses, gradients), broken)
        for step in range(1, steps + 1):
            if not len(ascent.rows):
                break
            ascent = ascent.moved(threat, step)
            broken, losses, gradients = self._look(logits, tally, ascent.rows, ascent.aims, ascent.points)
            ascent = released(ascent.observed(losses, gradients), broken).adapted(threat, step, steps)
        return ascent

    def _look(
        self, logits: Logits, tally: Tally, rows: Tensor, aims: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Whether the points are misclassified, their losses and the gradients, each over ``eot`` forwards."""
        points = points.detach().requires_grad_()
        sums: list[Tensor] = []
        for _ in range(self.eot):
            outputs = logits(points)
            losses = self._loss(outputs, *aims.unbind(1))
            # Each forward's own gradient: an infinite one must not outweigh the others in the mean.
            seen = (outputs.detach(), losses.detach(), image_gradients(losses, points))
            sums = [total + one for total, one in zip(sums, seen, strict=True)] if sums else list(seen)
        tally.count(rows, self.eot)
        outputs, losses, gradients = (total / self.eot for total in sums)
        # Compared with NaN nothing would ever be better.
        losses = torch.where(losses.isnan(), -torch.inf, losses)
        return predictions(outputs) != aims[:, 0], losses, gradients

    def _phases(self) -> list[tuple[Threat, int]]:
        """The balls to climb in, one after the other, and the steps in each."""
        threat = inner(self.threat)
        part = 3 * self.steps // 10 if threat.norm == "l1" else 0
        larger = [(threat.scaled(factor), part) for factor in (3.0, 2.0) if part]
        return [*larger, (threat, self.steps - 2 * part)]
