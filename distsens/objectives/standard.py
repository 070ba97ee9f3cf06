"""Standard training: the control without any adversarial example in its loss."""

from __future__ import annotations

from torch import Tensor

from distsens.objectives.losses import cross_entropy
from distsens.objectives.objective import LossParts, Objective, needed


def standard(label_smoothing: float = 0.0) -> Objective:
    """``CE(f(x), y)``."""

    def loss(benign: Tensor | None, adversarial: Tensor | None, labels: Tensor) -> LossParts:  # noqa: ARG001
        return {"benign_ce": cross_entropy(needed(benign), labels, label_smoothing)}

    return Objective(loss, uses_benign=True, uses_adversarial=False)
