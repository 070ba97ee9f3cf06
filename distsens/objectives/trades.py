"""TRADES: accuracy on benign images, and the same prediction on their adversarial twins."""

from __future__ import annotations

from torch import Tensor

from distsens.attacks import kl_divergence
from distsens.objectives.losses import cross_entropy
from distsens.objectives.objective import LossParts, Objective, needed


def trades(beta: float = 6.0, label_smoothing: float = 0.0) -> Objective:
    """``CE(f(x), y) + beta * KL(f(x) || f(x'))`` with x' from PGD on the same KL divergence.

    Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019, equation 5 (their
    1/lambda is beta, 6 in their best model on CIFAR-10). The published recipe starts the attack at ``random_start:
    normal``; a random start is needed, as the gradient of the divergence is zero at the image itself: attacks without
    one (fgsm, bim, mim) are refused.
    """

    def loss(benign: Tensor | None, adversarial: Tensor | None, labels: Tensor) -> LossParts:
        return {
            "benign_ce": cross_entropy(needed(benign), labels, label_smoothing),
            "robust_kl": beta * kl_divergence(needed(adversarial), needed(benign)),
        }

    return Objective(loss, uses_benign=True, uses_adversarial=True, against_benign=True)
