from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distsens.sensitivity import contributions


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    benign = torch.rand(6, 1, 8, 8, generator=generator)
    return benign, (benign + 0.3 * torch.randn(benign.shape, generator=generator)).clamp(0, 1), torch.arange(6) % 3


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 8), nn.Tanh(), nn.Linear(8, 3)
    ).eval()  # fmt: skip


def test_before_a_linear_head_each_is_weight_times_difference(pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    body, head = nn.Linear(64, 5), nn.Linear(5, 3)
    benign, adversarial, labels = pairs
    targets = (labels + 1) % 3
    found = contributions(nn.Sequential(nn.Flatten(), body, head), "1", benign, adversarial, labels, targets, steps=1)
    difference = body(adversarial.flatten(1)) - body(benign.flatten(1))
    expected = difference * (head.weight[targets] - head.weight[labels])
    assert torch.allclose(found.neurons, expected, atol=1e-6)
    assert found.gap < 1e-5


@pytest.mark.parametrize("layer", ["0", "3"])
def test_their_sum_comes_to_the_real_change_as_the_steps_grow(pairs: tuple[Tensor, Tensor, Tensor], layer: str) -> None:
    model = network()
    few, many = (contributions(model, layer, *pairs, steps=steps) for steps in (1, 32))
    assert torch.allclose(many.change, many.total, atol=1e-5)  # a sequence: the layer is all that the logits see
    assert many.gap < 1e-3
    assert many.gap < few.gap
    with torch.no_grad():
        z, z_adv = model(pairs[0]), model(pairs[1])
    for i, label in enumerate(pairs[2].tolist()):
        target = max((k for k in range(3) if k != label), key=lambda k: z_adv[i, k].item())
        real = (z_adv[i, target] - z_adv[i, label]) - (z[i, target] - z[i, label])
        assert many.neurons[i].sum().item() == pytest.approx(real.item(), abs=2e-3)


def test_beside_a_shortcut_the_sum_is_compared_with_what_passes_through_the_layer(
    pairs: tuple[Tensor, Tensor, Tensor],
) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(64, 64)
            self.head = nn.Linear(64, 3)

        def forward(self, images: Tensor) -> Tensor:
            flat = images.flatten(1)
            logits: Tensor = self.head(flat + torch.tanh(self.branch(flat)))
            return logits

    torch.manual_seed(0)
    found = contributions(Residual(), "branch", *pairs, steps=32)
    assert found.gap < 1e-3
    assert not torch.allclose(found.change, found.total, atol=1e-3)


def test_parameters_get_no_gradient_and_modes_stay(pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    model = network().train()
    contributions(model, "0", *pairs, steps=2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
