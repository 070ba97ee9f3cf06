"""Classifiers and images that the attacks are tried on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from tests.attacks import peers


@pytest.fixture
def smooth() -> nn.Module:
    """An untrained network without kinks and without batch norm, so that tiny rounding errors stay tiny."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 5)
        )


@pytest.fixture
def images() -> Tensor:
    """Twelve random images of 3 x 6 x 6 pixels, some of them black or white."""
    pixels = torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    return (1.5 * pixels - 0.25).clamp(0.0, 1.0)


@pytest.fixture
def labels() -> Tensor:
    """Labels of those images, in five classes."""
    return torch.arange(12) % 5


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits of scikit-learn, (N, 1, 8, 8) in [0, 1], and their labels."""
    return peers.digits()


@pytest.fixture(scope="session")
def trained() -> nn.Module:
    """A small CNN that learnt the digits under noise: half robust, because there attacks differ the most."""
    return peers.trained()


@pytest.fixture(scope="session")
def success() -> Callable[[Tensor], float]:
    """How many adversarial digits (the first ones, in order) the trained network gets wrong, in percent."""
    return peers.wrong


@pytest.fixture(scope="session")
def nearest() -> Callable[[np.ndarray, np.ndarray, float, int], np.ndarray]:
    """The nearest d to v with ``||d||_order <= eps`` and ``|d_i| <= reach_i``, by a root of the Lagrange multiplier."""

    def solve(offsets: np.ndarray, reach: np.ndarray, eps: float, order: int) -> np.ndarray:
        lengths = np.abs(offsets)

        def at(multiplier: float) -> np.ndarray:
            shrunk = lengths - multiplier if order == 1 else lengths * (1.0 - multiplier)
            return np.clip(shrunk, 0.0, reach)

        def excess(multiplier: float) -> float:
            return float(np.linalg.norm(at(multiplier), order)) - eps

        most = float(lengths.max()) if order == 1 else 1.0
        root = brentq(excess, 0.0, most, xtol=1e-15, rtol=1e-14) if excess(0.0) > 0.0 and eps > 0.0 else 0.0
        return np.copysign(at(root if eps > 0.0 else most), offsets)

    return solve
