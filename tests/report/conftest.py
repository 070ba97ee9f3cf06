"""A short history to show."""

from __future__ import annotations

import pytest
import torch

from distsens.sensitivity import LayerSensitivity
from distsens.training import EpochRecord

LAYERS = {"conv1": 0.03, "conv2": 0.01, "fc1": 0.2}


def record(epoch: int, clean: float, robust: float) -> EpochRecord:
    """An epoch whose layers' sensitivities shrink with time."""
    metrics = {"epoch": float(epoch), "validation/clean_accuracy": clean, "validation/robust_accuracy": robust}
    for layer, value in LAYERS.items():
        metrics[f"sensitivity/absolute/{layer}"] = value / (1 + epoch)
        metrics[f"sensitivity/relative/{layer}"] = 10 * value / (1 + epoch)
    if epoch > 0:
        metrics |= {
            "loss": 1.25 / epoch,
            "throughput/images_per_second": 1234.5,
            "throughput/attack_share": 0.8,
            "schedule/sns_weight": 0.5 * (epoch > 1),
        }
    return EpochRecord(epoch, metrics)


@pytest.fixture
def history() -> list[EpochRecord]:
    """The untrained network and three epochs, of which the second is the best."""
    return [record(0, 0.1, 0.05), record(1, 0.5, 0.3), record(2, 0.9, 0.612), record(3, 0.95, 0.6)]


@pytest.fixture
def sensitivity() -> dict[str, LayerSensitivity]:
    """Two layers of ten and of three neurons."""
    return {
        layer: LayerSensitivity(
            *(torch.rand(3, count, dtype=torch.float64, generator=torch.Generator().manual_seed(count)))
        )
        for layer, count in (("conv1", 10), ("fc1", 3))
    }
