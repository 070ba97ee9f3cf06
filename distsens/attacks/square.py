"""Square Attack: random search that needs no gradient, with changes in the shape of squares."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distsens.attacks.found import Found
from distsens.attacks.losses import margin
from distsens.attacks.squares import changed_points, first_points
from distsens.attacks.tally import Tally, inner
from distsens.attacks.threat import Threat
from distsens.attacks.view import Logits, attack_view
from distsens.errors import InputError
from distsens.logits import predictions
from distsens.randomness import sample_keys

# After how many changes the part of the image that a square covers is halved.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Square:
    """Square Attack, a :class:`JudgingAttack`: a change is kept where it makes the margin larger (see :func:`margin`).

    In Linf it starts with vertical stripes of ``+-eps``, and a change sets a square of each channel to ``+-eps``. In
    L2 and L1 it starts with a grid of tiles, and a change moves the offsets of one square to another, adds a tile
    there, and spends all of eps that is left. Then all is clipped to [0, 1], or in L1 projected. An image that is
    misclassified leaves the batch at once.

    Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", ECCV 2020,
    algorithms 1 to 3; all else is as in the standard version of AutoAttack (Croce and Hein, ICML 2020, and in L1 "Mind
    the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021), see :mod:`squares`.

    Parameters
    ----------
    threat : the ball.
    queries : changes per restart; the point that they start from comes on top.
    p_init : part of the image that the first squares cover; it is halved after the changes 10, 50, 200, 500, 1000,
        2000, 4000, 6000 and 8000, counted from 0, however many there are.
    restarts : attempts per image.

    Raises
    ------
    InputError : a setting is out of range.
    """

    threat: Threat
    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1

    def __post_init__(self) -> None:
        for name in ("queries", "restarts"):
            if getattr(self, name) < 1:
                raise InputError(f"attack.{name}", getattr(self, name), "it must be 1 or more")
        if not 0.0 < self.p_init <= 1.0:
            raise InputError("attack.p_init", self.p_init, "it must lie above 0 and be at most 1")

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, keys: Tensor | None = None) -> Found:
        """Attack; see :class:`JudgingAttack`."""
        with attack_view(model) as logits, torch.no_grad():
            tally = Tally(images, labels, keys)
            everything, outputs = tally.left, logits(tally.images)
            tally.count(everything, 1)
            wrong = predictions(outputs) != tally.labels
            tally.record(everything, tally.images, margin(outputs, tally.labels), wrong)
            for restart in range(self.restarts):
                if len(rows := tally.left):
                    self._attempt(logits, tally, rows, sample_keys(tally.keys[rows], "square", restart))
            return tally.found()

    def _attempt(self, logits: Logits, tally: Tally, rows: Tensor, keys: Tensor) -> None:
        """One attempt on the images at these positions, noted in the tally."""
        images, labels, threat = tally.images[rows], tally.labels[rows], inner(self.threat)
        points = best = first_points(threat, images, sample_keys(keys, "start"))
        losses = torch.full((len(rows),), -torch.inf, device=images.device)
        for shown in range(1, self.queries + 2):
            if shown > 1:
                query = shown - 2
                points = changed_points(threat, best, images, sample_keys(keys, query), self.part(query))
            outputs = logits(points)
            values, broken = margin(outputs, labels), predictions(outputs) != labels
            better = values > losses
            losses = torch.where(better, values, losses)
            best = torch.where(better[:, None, None, None], points, best)
            if broken.any():
                tally.count(rows[broken], shown)
                tally.record(rows[broken], points[broken], values[broken], broken[broken])
                state = (rows, keys, images, labels, best, losses)
                rows, keys, images, labels, best, losses = (each[~broken] for each in state)
                if not len(rows):
                    return
        tally.count(rows, self.queries + 1)
        tally.record(rows, best, losses, torch.zeros_like(rows, dtype=torch.bool))

    def part(self, query: int) -> float:
        """Part of the image that the square of a change covers; the first one is 0."""
        return self.p_init / 2.0 ** bisect_left(_HALVINGS, query)
