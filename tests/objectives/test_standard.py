from __future__ import annotations

import math

import pytest
import torch

from distsens.objectives import standard


def test_loss_is_the_cross_entropy_on_benign_images() -> None:
    benign = [[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]
    labels = [0, 2]
    parts = standard().loss(torch.tensor(benign), torch.randn(2, 3), torch.tensor(labels))
    expected = [-math.log(math.exp(z[y]) / sum(map(math.exp, z))) for z, y in zip(benign, labels, strict=True)]
    assert list(parts) == ["benign_ce"]
    assert parts["benign_ce"].tolist() == pytest.approx(expected, rel=1e-6)
