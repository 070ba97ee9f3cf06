"""Free adversarial training: the backward pass that trains also moves the images."""

from __future__ import annotations

from distsens.objectives.objective import Objective
from distsens.objectives.pgd_at import pgd_at


def free_at(label_smoothing: float = 0.0) -> Objective:
    """``CE(f(x'), y)``, the loss of PGD-AT, on x' that a batch used several times in a row carries along.

    Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019, algorithm 1: each replay updates the weights and, by
    the same backward pass, the perturbation of the next. That is the training step's work; the objective is the loss.
    """
    return pgd_at(label_smoothing)
