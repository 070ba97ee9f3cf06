"""Tokens, wide layers and maps that are not square."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distsens.analysis import InterventionPlan, as_map, intervene, measure, probe
from distsens.models import build
from distsens.sensitivity import neuron_counts


def test_the_tokens_of_a_transformer_are_measured_and_intervened_on() -> None:
    model = build("vit_tiny", shape=(3, 32, 32), classes=4, mean=(0.5,) * 3, std=(0.5,) * 3, seed=0).eval()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    twins = (images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    layers = [layer for layer in neuron_counts(model, "auto", images[:1]) if "mlp" in layer or "conv" in layer][:3]
    table = measure(model, images, twins, layers=layers)
    described = probe(model, images, layers)
    assert table["absolute"].gt(0).any()
    assert described["positions"].max() > 1  # tokens
    first = table[table["layer"] == layers[-1]].sort_values("neuron")
    values, means = (torch.tensor(first[name].to_numpy().copy()) for name in ("absolute", "output"))
    plan = InterventionPlan({layers[-1]: values}, {layers[-1]: means}, ratios=(0.1,), draws=2, steps=2)
    found = intervene(model, images, twins, torch.zeros(4, dtype=torch.int64), plan)
    assert found.images == 4
    assert len(found.correct) == 3 * (2 + 2)


def test_a_wide_layer_is_measured_in_little_memory() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv2d(8, 2048, 1)
            self.head = nn.Linear(2048, 3)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.relu(self.wide(images)).mean((2, 3)))
            return logits

    torch.manual_seed(0)
    images = torch.rand(12, 8, 7, 7)
    table = measure(Wide(), images, (images + 0.01).clamp(0, 1), batch_size=5)
    assert len(table) == 2048
    assert table["sensitive"].sum() == 205


@pytest.mark.parametrize(
    ("positions", "aspect", "shape"),
    [
        (49, 1.0, (7, 7)),
        (197, 1.0, (14, 14)),
        (50, 2.0, (10, 5)),
        (18, 0.5, (3, 6)),
        (1, 1.0, (1, 1)),
        (7, 1.0, (1, 7)),
    ],
)
def test_positions_become_a_map_without_the_class_token(positions: int, aspect: float, shape: tuple[int, int]) -> None:
    assert tuple(as_map(torch.arange(float(positions)), aspect).shape) == shape
