"""Adversarial logit pairing (ALP): the same logits for an image and its adversarial twin."""

from __future__ import annotations

from torch import Tensor

from distsens.objectives.losses import cross_entropy
from distsens.objectives.objective import LossParts, Objective, needed


def alp(beta: float = 0.5, label_smoothing: float = 0.0) -> Objective:
    """``(CE(f(x), y) + CE(f(x'), y)) / 2 + beta / K * ||f(x) - f(x')||_2^2`` with x' from PGD on the cross-entropy.

    Kannan et al., "Adversarial Logit Pairing", arXiv 1803.06373, 2018 (their lambda is beta, 0.5 on ImageNet). This is
    the variant on mixed batches: the cross-entropy is the mean over the 2 N images of both halves, the pairing the mean
    over the K logits. What ALP gained under weak attacks was lost under stronger ones (Engstrom et al., arXiv
    1807.10272): judge it by many steps and restarts.
    """

    def loss(benign: Tensor | None, adversarial: Tensor | None, labels: Tensor) -> LossParts:
        benign, adversarial = needed(benign), needed(adversarial)
        return {
            "benign_ce": cross_entropy(benign, labels, label_smoothing) / 2,
            "adversarial_ce": cross_entropy(adversarial, labels, label_smoothing) / 2,
            "logit_pairing": beta * (benign - adversarial).square().mean(1),
        }

    return Objective(loss, uses_benign=True, uses_adversarial=True)
