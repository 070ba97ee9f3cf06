from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from distsens.attacks import FAB, Threat


def test_more_targets_come_as_close_as_one_and_closer(trained: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits[0][:40], digits[1][:40]
    attack = FAB(Threat("l2", 1.0), steps=10, targets=1)
    one, all_ = (replace(attack, targets=targets).closest(trained, images, labels).distances for targets in (1, 99))
    assert (all_ <= 1.01 * one).all()
    assert (all_ < 0.99 * one).any()


def test_restarts_find_a_nearer_boundary_that_the_slope_at_the_image_hides() -> None:
    class TwoWays(nn.Module):
        """The other class grows along two pixels, whichever says more: slowly, or steeply from further below."""

        def forward(self, x: Tensor) -> Tensor:
            slow, steep = (x.flatten(1)[:, :2] - 0.5).unbind(1)
            other = torch.maximum(0.3 * slow - 0.1, 2.0 * steep - 0.12)
            return torch.stack([torch.zeros_like(other), other], dim=1)

    images, labels = torch.full((24, 1, 2, 2), 0.5), torch.zeros(24, dtype=torch.int64)
    attack = FAB(Threat("l2", 1.0), steps=10)
    one, three = (replace(attack, restarts=n).closest(TwoWays(), images, labels).distances for n in (1, 3))
    assert torch.allclose(one, torch.tensor(0.1 / 0.3), rtol=1e-2)
    near = (three >= 0.12 / 2.0) & (three < 1.2 * 0.12 / 2.0)
    assert near.sum() >= 12  # A random start sees the steep way about every second time.
    assert torch.allclose(three[~near], one[~near], rtol=1e-2)


def test_an_image_whose_steps_change_nothing_is_left_alone(images: Tensor) -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.0 * x.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0])

    found = FAB(Threat("l2", 1.0), steps=50)(Flat(), images, torch.zeros(12, dtype=torch.int64))
    assert found.evaluations.tolist() == [1 + 2 * 2] * 12
