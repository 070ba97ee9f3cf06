"""MART: misclassified images are pulled hardest towards the same prediction on their adversarial twins."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from distsens.attacks import cross_entropy, kl_divergence
from distsens.objectives.objective import LossParts, Objective, needed


def mart(beta: float = 5.0) -> Objective:
    """``BCE(f(x'), y) + beta * KL(f(x) || f(x')) * (1 - p_y(x))`` with x' from PGD on the cross-entropy.

    Here ``BCE = -log p_y(x') - log(1 - max_{k != y} p_k(x'))``, and p is the softmax of f. Wang et al., "Improving
    Adversarial Robustness Requires Revisiting Misclassified Examples", ICLR 2020 (their lambda, 5 or 6, is beta). The
    gradient also flows through the weight ``1 - p_y(x)``. There is no label smoothing: the BCE names one class that is
    right and one rival that is wrong, so it holds no distribution of labels that could be smoothed.
    """

    def loss(benign: Tensor | None, adversarial: Tensor | None, labels: Tensor) -> LossParts:
        benign, adversarial = needed(benign), needed(adversarial)
        doubt = 1 - benign.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
        return {
            "adversarial_bce": _boosted_cross_entropy(adversarial, labels),
            "robust_kl": beta * kl_divergence(adversarial, benign) * doubt,
        }

    return Objective(loss, uses_benign=True, uses_adversarial=True)


def _boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``-log p_y - log(1 - max_{k != y} p_k)`` per image: (N,)."""
    log_p = F.log_softmax(logits, dim=1)
    rival = log_p.scatter(1, labels.unsqueeze(1), -float("inf")).argmax(1, keepdim=True)
    # 1 - p_rival is the sum of the other probabilities; in log space it stays exact where p_rival rounds to 1.
    log_rest = log_p.scatter(1, rival, -float("inf")).logsumexp(1)
    return cross_entropy(logits, labels) - log_rest
