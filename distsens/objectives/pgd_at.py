"""Adversarial training with PGD."""

from __future__ import annotations

from torch import Tensor

from distsens.objectives.losses import cross_entropy
from distsens.objectives.objective import LossParts, Objective, needed


def pgd_at(label_smoothing: float = 0.0) -> Objective:
    """``CE(f(x'), y)`` with x' from PGD on the cross-entropy (Madry et al., ICLR 2018, equation 2.1)."""

    def loss(benign: Tensor | None, adversarial: Tensor | None, labels: Tensor) -> LossParts:  # noqa: ARG001
        return {"adversarial_ce": cross_entropy(needed(adversarial), labels, label_smoothing)}

    return Objective(loss, uses_benign=False, uses_adversarial=True)
