"""Fast adversarial training: one gradient step from a random start."""

from __future__ import annotations

from distsens.objectives.objective import Objective
from distsens.objectives.pgd_at import pgd_at


def fast_at(label_smoothing: float = 0.0) -> Objective:
    """``CE(f(x'), y)``, the loss of PGD-AT, with x' from FGSM that starts uniformly in the ball.

    Wong, Rice and Kolter, "Fast is better than free: Revisiting adversarial training", ICLR 2020, algorithm 3. Robust
    accuracy under PGD can fall to zero within an epoch (catastrophic overfitting), which validation with PGD shows.
    """
    return pgd_at(label_smoothing)
