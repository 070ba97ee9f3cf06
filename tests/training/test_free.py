from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import GradientAttack, Threat
from distsens.errors import InputError
from distsens.objectives import pgd_at
from distsens.sensitivity import Stabilizer, Stabilizing, match_layers, neuron_counts
from distsens.training import Batch, FreeStep, TrainingStep

EPS = 0.1
LR = 0.2


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 16, 7), nn.Tanh(), nn.Linear(7, 4))


def batch(seed: int, count: int = 6) -> Batch:
    """A sixth of the pixels is black, and another one white, where a perturbation meets the edge of [0, 1]."""
    pixels = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed)).mul(1.5).sub(0.25).clamp(0, 1)
    return Batch(pixels, torch.arange(count) % 4, torch.arange(count), global_size=count)


def free_step(model: nn.Module, replays: int, norm: Any = "linf", sns: Stabilizing | None = None) -> FreeStep:
    layers = match_layers(model, "auto", torch.zeros(1, 1, 6, 6))
    stabilizer = Stabilizer(sns, neuron_counts(model, layers, torch.zeros(1, 1, 6, 6))) if sns else None
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    attack = GradientAttack(Threat(norm, EPS), steps=99, step_size=99.0)
    step = FreeStep(TrainingStep(model, optimizer, pgd_at(), attack, stabilizer, layers), replays)
    step.begin_epoch()
    return step


def published(model: nn.Module, batches: list[Batch], replays: int, norm: str) -> Tensor:
    """Algorithm 1, with every quantity by itself; the last perturbation."""
    delta = torch.zeros_like(batches[0].images)
    for one in batches:
        for _ in range(replays):
            x = in_reach(one.images, delta, norm).requires_grad_()
            loss = nn.functional.cross_entropy(model(x), one.labels)
            for_images, *for_weights = torch.autograd.grad(loss, [x, *model.parameters()])
            with torch.no_grad():
                for w, g in zip(model.parameters(), for_weights, strict=True):
                    w -= LR * g
                if norm == "linf":
                    moved = x - one.images + EPS * for_images.sign()
                else:
                    lengths = for_images.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
                    moved = x - one.images + EPS * for_images / lengths
                delta = in_reach(one.images, moved, norm) - one.images
    return delta


def in_reach(images: Tensor, delta: Tensor, norm: Any) -> Tensor:
    return Threat(norm, EPS).project(images + delta, images).detach()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("replays", [1, 3])
def test_it_is_the_algorithm_of_the_paper(replays: int, norm: str) -> None:
    model, batches = network(), [batch(seed) for seed in range(3)]
    reference = copy.deepcopy(model)
    delta = published(reference, batches, replays, norm)
    step = free_step(model, replays, norm)
    for one in batches:
        step(one)
    for found, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), wanted.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(step._perturbation, delta, rtol=1e-4, atol=1e-6)
    assert delta.abs().max() > EPS / 3


def test_a_step_in_l1_moves_the_part_of_the_pixels_that_the_attack_says() -> None:
    for fraction in (1 / 36, 0.5):
        attack = GradientAttack(Threat("l1", 0.5), steps=99, step_size=99.0, l1_fraction=fraction)
        model = network()
        step = FreeStep(TrainingStep(model, torch.optim.SGD(model.parameters(), lr=LR), pgd_at(), attack), 1)
        step.begin_epoch()
        step(batch(1))
        assert int((step._perturbation != 0).flatten(1).sum(1).max()) == round(36 * fraction)


def test_every_epoch_begins_at_the_images_themselves() -> None:
    models = []
    for before in ([], [batch(7)]):
        model = network()
        step = free_step(model, 2)
        for one in before:
            step(one)
        model.load_state_dict(network().state_dict())
        step.begin_epoch()
        step(batch(1))
        models.append(model.state_dict())
    torch.testing.assert_close(*models, rtol=0, atol=0)


def test_an_image_counts_once_by_the_mean_over_its_replays_and_each_took_a_gradient() -> None:
    step = free_step(network(), 3)
    result = step(batch(1))
    assert (result.sums["images"], result.sums["gradient_evaluations"]) == (pytest.approx(6), 3 * 6)
    assert result.sums["attack_seconds"] == 0
    assert result.sums["seconds"] > 0
    again = free_step(network(), 1)
    singles = []
    for number in range(3):
        singles.append(again(batch(1)))  # the perturbation is taken along, as by replays
        assert singles[number].finite
    assert float(result.sums["loss/adversarial_ce"]) == pytest.approx(
        sum(float(one.sums["loss/adversarial_ce"]) for one in singles) / 3, rel=1e-5
    )
    assert result.gradient_norm == pytest.approx(sum(one.gradient_norm for one in singles) / 3, rel=1e-5)


def test_sns_joins_the_loss_that_weights_and_images_follow() -> None:
    found = []
    for weight in (0.0, 50.0):
        step = free_step(network(), 1, "l2", Stabilizing(ratio=1.0, selection="all", pairs=1 / 2))
        step(batch(5), sns_weight=0.0)
        step.step.stabilizer.refresh()
        step.step.model.load_state_dict(network().state_dict())
        result = step(batch(1), sns_weight=weight)
        assert ("loss/stabilizing" in result.sums) == (weight > 0)
        found.append((step._perturbation, next(step.step.model.parameters()).detach().clone()))
    (plain, weights), (stabilized, others) = found
    assert not torch.equal(weights, others)
    moved = (plain != stabilized).flatten(1).any(1).tolist()
    assert moved == [True, False] * 3  # the compared images alone


def test_a_smaller_ball_holds_the_perturbation_of_a_larger_one() -> None:
    step = free_step(network(), 2)
    step(batch(1))
    step(batch(2), eps_factor=0.25)
    assert step._perturbation.abs().max() <= EPS / 4 + 1e-6


def test_a_loss_that_is_not_finite_is_told() -> None:
    model = network()
    step = free_step(model, 3)
    with torch.no_grad():
        model[5].weight.fill_(3e38)
    assert not step(batch(1)).finite


class Root(nn.Module):
    """Has an infinite slope at black pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.sqrt()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_pixel_whose_slope_is_not_finite_stays_and_spoils_no_other(norm: str) -> None:
    step, one = free_step(nn.Sequential(Root(), *network()), 1, norm), batch(1)
    assert step(one).finite
    black = one.images == 0.0
    assert black.any()
    assert (step._perturbation[black] == 0.0).all()
    assert (step._perturbation != 0.0).flatten(1).any(1).all()
    assert step._perturbation.isfinite().all()


def test_weight_perturbation_is_refused() -> None:
    with pytest.raises(InputError, match=r"training\.awp_gamma: got 0\.1; free adversarial training"):
        free_step(network(), 2)(batch(1), awp_gamma=0.1)
