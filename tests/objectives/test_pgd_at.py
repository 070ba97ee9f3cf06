from __future__ import annotations

import math

import pytest
import torch

from distsens.objectives import Objective, fast_at, free_at, pgd_at


@pytest.mark.parametrize("objective", [pgd_at(), fast_at(), free_at()], ids=["pgd_at", "fast_at", "free_at"])
def test_loss_is_the_cross_entropy_on_adversarial_images(objective: Objective) -> None:
    adversarial = [[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]
    labels = [0, 2]
    parts = objective.loss(torch.randn(2, 3), torch.tensor(adversarial), torch.tensor(labels))
    expected = [-math.log(math.exp(z[y]) / sum(map(math.exp, z))) for z, y in zip(adversarial, labels, strict=True)]
    assert list(parts) == ["adversarial_ce"]
    assert parts["adversarial_ce"].tolist() == pytest.approx(expected, rel=1e-6)
