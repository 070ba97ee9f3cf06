"""DeepFool: from boundary to boundary of the linearised classifier, until it is mistaken."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distsens.attacks.closest import Closest, Search
from distsens.attacks.found import Found
from distsens.attacks.hyperplane import nearest_boundary
from distsens.attacks.threat import Threat, norms
from distsens.attacks.view import attack_view
from distsens.errors import InputError

_ADVANCE = 1e-4


@dataclass(frozen=True)
class DeepFool:
    """Steps to the nearest boundary of the classifier linearised at the last point; the first mistake ends them.

    ``x <- clip(x + (1 + overshoot) (|v| / ||w||_2 + 1e-4) w / ||w||_2)`` in L2, and in Linf
    ``x <- clip(x + (1 + overshoot) (|v| / ||w||_1 + 1e-4) sign(w))``, where v and w are value and slope of the nearest
    boundary (see :func:`nearest_boundary`). Moosavi-Dezfooli et al., "DeepFool: a simple and accurate method to fool
    deep neural networks", CVPR 2016, algorithm 2 and section 3.3; the 1e-4 is from the authors' code. Without it,
    clipped steps would come ever closer to the boundary and not reach it.

    Parameters
    ----------
    threat : its norm, L2 or Linf, is made small; its ball bounds what :meth:`__call__` gives.
    steps : at the most.
    overshoot : part of a step by which it is longer than the way to the boundary.
    candidates : classes considered: those with the largest logits, the image's own among them.

    Raises
    ------
    InputError : a setting is out of range.
    """

    threat: Threat
    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10

    def __post_init__(self) -> None:
        if self.threat.norm == "l1":
            raise InputError("threat.norm", self.threat.norm, 'DeepFool is for "l2" and "linf"')
        if self.steps < 1:
            raise InputError("attack.steps", self.steps, "it must be 1 or more")
        if not (math.isfinite(self.overshoot) and self.overshoot >= 0.0):
            raise InputError("attack.overshoot", self.overshoot, "it must be a finite number, 0 or more")
        if self.candidates < 2:
            raise InputError(
                "attack.candidates", self.candidates, "it must be 2 or more: the image's class and another"
            )

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
            search = Search(logits, self.threat, images, labels, keys)
            rows, others = search.rows, search.others[:, : self.candidates - 1]
            points = search.images[rows]
            for _ in range(self.steps):
                if len(rows) == 0:
                    break
                points = points.requires_grad_()
                outputs, _ = search.show(rows, points)
                _, slope, distance = nearest_boundary(outputs, points, search.labels[rows], others, self.threat.norm)
                with torch.no_grad():
                    length = (1.0 + self.overshoot) * (distance + _ADVANCE)
                    direction = slope / norms(slope, 2) if self.threat.norm == "l2" else slope.sign()
                    nexts = (points + length.reshape(-1, *(1,) * (images.ndim - 1)) * direction).clamp(0.0, 1.0)
                    _, excess = search.show(rows, nexts)
                    on = (excess <= 0.0) & (nexts != points).flatten(1).any(1)
                rows, others, points = rows[on], others[on], nexts[on]
            return search.closest()
