"""A classifier and images that the objectives are tried on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def network() -> nn.Module:
    """An untrained classifier into five classes, without kinks so that rounding errors stay small."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 4 * 4, 16), nn.Tanh(), nn.Linear(16, 5)
    )


@pytest.fixture
def images() -> Tensor:
    """Twelve random images of 6 x 6 pixels."""
    return torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def labels() -> Tensor:
    """Labels of those images."""
    return torch.arange(12) % 5


@pytest.fixture
def keys() -> Tensor:
    """What their random starts depend on."""
    return torch.arange(100, 112)
