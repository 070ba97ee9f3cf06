"""Training on benign images and their FGSM twins at once."""

from __future__ import annotations

from torch import Tensor

from distsens.objectives.losses import cross_entropy
from distsens.objectives.objective import LossParts, Objective, needed


def nat(alpha: float = 0.5, label_smoothing: float = 0.0) -> Objective:
    """``alpha * CE(f(x), y) + (1 - alpha) * CE(f(x'), y)`` with x' from FGSM.

    Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, section 6, where alpha is 0.5. Every
    image counts in both forms. In Kurakin et al., "Adversarial Machine Learning at Scale", ICLR 2017, each image of a
    batch counts in one of them; for halves of the same size their lambda is ``(1 - alpha) / alpha``.
    """

    def loss(benign: Tensor | None, adversarial: Tensor | None, labels: Tensor) -> LossParts:
        return {
            "benign_ce": alpha * cross_entropy(needed(benign), labels, label_smoothing),
            "adversarial_ce": (1 - alpha) * cross_entropy(needed(adversarial), labels, label_smoothing),
        }

    return Objective(loss, uses_benign=True, uses_adversarial=True)
