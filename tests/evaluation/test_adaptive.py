from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import GradientAttack, Threat, margin, pgd
from distsens.errors import InputError
from distsens.evaluation import Adaptive, LastIterate, Pool
from distsens.randomness import sample_keys
from distsens.sensitivity import (
    ActivationProbe,
    PairRows,
    Stabilizer,
    Stabilizing,
    neuron_counts,
)
from tests.evaluation.digit_models import STABILIZING, THREAT, part, plain, stabilized

IMAGES, LABELS = part(1000, 1100)
POOL = Pool(*part(1100, 1200))
STEPS = 10
ATTACK = Adaptive(THREAT, POOL, STEPS, stabilizing=STABILIZING)
SMOOTH_THREAT = Threat("l2", 0.15)


def wrong(model: nn.Module, images: Tensor, labels: Tensor = LABELS) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1) != labels


def smooth() -> nn.Module:
    """A network without kinks, so that tiny rounding errors stay tiny, which knows all of its four classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        last = nn.Linear(12, 4)
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 12), nn.Tanh(), last)
    with torch.no_grad():
        last.bias -= model(part(0, 100)[0]).mean(0)
    return model


def smooth_attack(**changes: Any) -> Adaptive:
    images, _ = part(0, 20)
    return replace(
        Adaptive(SMOOTH_THREAT, Pool(images, smooth()(images).argmax(1)), 3, stabilizing=Stabilizing(0.3)), **changes
    )


def textbook(attack: Adaptive, model: nn.Module, image: Tensor, label: Tensor, key: Tensor) -> tuple[Tensor, int]:
    """The attack on one image (1, C, H, W), with both of a pair in each forward, and the training's own stabilizer."""
    pool, threat = attack.pool, attack.threat
    twins = pgd(model, pool.images, pool.labels, threat, steps=10, step_size=threat.eps / 4)
    count = len(pool.images)
    stabilizer = Stabilizer(replace(attack.stabilizing, pairs=1.0), neuron_counts(model, "auto", pool.images[:1]))

    def read(pairs: Tensor) -> tuple[Tensor, dict[str, Any]]:
        rows = PairRows(slice(0, len(pairs) // 2), slice(len(pairs) // 2, len(pairs)))
        with ActivationProbe(model, "auto", lambda layer, outputs: stabilizer.read(layer, outputs, rows)) as probe:
            return model(pairs), probe.outputs

    stabilizer.count(read(torch.cat([pool.images, twins]))[1])
    stabilizer.refresh()
    outputs, readings = read(torch.cat([pool.images, twins]))
    change = (margin(outputs[count:], pool.labels) - margin(outputs[:count], pool.labels)).abs().mean()
    unit = (change / stabilizer.term(readings).mean()).detach()

    def features(images: Tensor) -> Tensor:
        return model[:4](images)

    others = pool.images[model(pool.images).argmax(1) != label]
    by_distance = (features(others) - features(image)).norm(dim=1).argsort()

    best, largest = image, margin(model(image), label).item()
    if largest > 0:
        return best, 1
    spent = 1
    for restart in range(attack.restarts):
        target = features(others[by_distance[restart]][None]).detach()
        for number, weight in enumerate([*attack.weights, None]):
            point = threat.start(image, sample_keys(key, "adaptive", restart, number), "uniform")
            for step in range(attack.steps + 1):
                left = (1 + math.cos(math.pi * step / attack.steps)) / 2
                point = point.detach().requires_grad_()
                logits, readings = read(torch.cat([image, point]))
                spent += 1
                value = margin(logits[1:], label)
                if value.item() > largest:
                    best, largest = point.detach(), value.item()
                if largest > 0:
                    return best, spent
                if step == attack.steps:
                    break
                if weight is None:
                    goal = -(features(point) - target).square().sum()
                else:
                    goal = value + left * weight * unit * stabilizer.term(readings)
                (gradient,) = torch.autograd.grad(goal.sum(), point)
                point = threat.project(threat.ascend(point.detach(), gradient, left * threat.eps), image)
    return best, spent


@pytest.mark.parametrize("weights", [(0.0, 2.0, -0.5), ()])
def test_it_is_the_textbooks_attack_one_image_at_a_time(weights: tuple[float, ...]) -> None:
    model, attack = smooth(), smooth_attack(weights=weights, restarts=2)
    images, _ = part(40, 52)
    labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 4
    keys = torch.arange(12) + 5
    found = attack(model, images, labels, keys=keys)
    for i in range(12):
        expected, spent = textbook(attack, model, images[i : i + 1], labels[i : i + 1], keys[i : i + 1])
        assert found.evaluations[i].item() == spent
        torch.testing.assert_close(found.adversarial[i : i + 1], expected, rtol=0, atol=1e-3)
    whole = 1 + attack.restarts * (len(weights) + 1) * (attack.steps + 1)
    assert {1, whole} < set(found.evaluations.tolist())  # some are wrong at once, some stand, some fall on the way


def test_against_a_stabilized_model_it_is_at_least_as_strong_as_pgd_of_as_many_steps() -> None:
    model = stabilized()
    adaptive = wrong(model, ATTACK(model, IMAGES, LABELS).adversarial)
    step_size = 2.5 * THREAT.eps / STEPS
    for loss in (None, margin):
        by_pgd = LastIterate(GradientAttack(THREAT, STEPS, step_size, loss=loss))(model, IMAGES, LABELS)
        assert adaptive.sum() >= wrong(model, by_pgd.adversarial).sum()
    assert wrong(model, IMAGES).sum() < adaptive.sum() < len(IMAGES)


@pytest.mark.parametrize("threat", [THREAT, Threat("l2", 0.8), Threat("l1", 3.0)])
def test_examples_stay_in_the_ball_and_in_0_to_1(threat: Threat) -> None:
    found = replace(ATTACK, threat=threat, steps=4)(stabilized(), IMAGES, LABELS)
    assert found.adversarial.dtype == torch.float32
    assert threat.distance(IMAGES, found.adversarial).max() <= threat.eps + 1e-5
    assert found.adversarial.min() >= 0.0
    assert found.adversarial.max() <= 1.0
    assert wrong(stabilized(), found.adversarial).sum() > wrong(stabilized(), IMAGES).sum()


def test_matched_features_break_images_without_a_look_at_the_logits() -> None:
    found = replace(ATTACK, weights=(), steps=20)(plain(), IMAGES, LABELS)
    assert wrong(plain(), found.adversarial).sum() > wrong(plain(), IMAGES).sum() + 20


def test_images_are_left_at_the_first_success() -> None:
    model = stabilized()
    found = ATTACK(model, IMAGES, LABELS)
    at_once, broken = wrong(model, IMAGES), wrong(model, found.adversarial)
    attempts = len(ATTACK.weights) + 1
    assert torch.equal(found.adversarial[at_once], IMAGES[at_once])
    assert set(found.evaluations[at_once].tolist()) == {1}
    assert set(found.evaluations[~broken].tolist()) == {1 + attempts * (STEPS + 1)}
    assert found.evaluations[broken & ~at_once].float().mean() < STEPS * 2


def test_restarts_keep_what_the_first_round_broke() -> None:
    # With more or longer steps most starts lead to the same end.
    model, attack = stabilized(), replace(ATTACK, steps=1, step_size=0.1)
    once, often = (replace(attack, restarts=n)(model, IMAGES, LABELS) for n in (1, 5))
    broken = wrong(model, once.adversarial)
    assert torch.equal(once.adversarial[broken], often.adversarial[broken])
    assert wrong(model, often.adversarial).sum() > broken.sum()


def test_an_image_is_attacked_alike_whatever_else_is_in_the_batch() -> None:
    model, attack = smooth(), smooth_attack()
    images, _ = part(40, 60)
    labels, keys, rows = model(images).argmax(1), torch.arange(20) + 3, torch.tensor([19, 0, 7])
    together = attack(model, images, labels, keys=keys)
    some = attack(model, images[rows], labels[rows], keys=keys[rows])
    torch.testing.assert_close(some.adversarial, together.adversarial[rows], rtol=0, atol=1e-3)
    assert some.evaluations.tolist() == together.evaluations[rows].tolist()
    other = attack(model, images, labels, keys=keys + 1)
    assert not torch.equal(other.adversarial, together.adversarial)


def test_hooks_that_are_on_the_model_take_part() -> None:
    """A hook that hides every answer but one class: the attack must take the model as the hook makes it."""
    model, seen = copy.deepcopy(stabilized()), []

    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        seen.append(len(output))
        return output - 100.0 * (torch.arange(10) != 3)

    handle = model.register_forward_hook(hook)
    found = ATTACK(model, IMAGES, LABELS)
    assert found.evaluations[LABELS != 3].tolist() == [1] * int((LABELS != 3).sum())
    assert set(found.evaluations[LABELS == 3].tolist()) == {1 + 6 * (STEPS + 1)}
    assert seen
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_model_and_the_generator_are_left_as_they_were_and_inference_mode_is_no_trouble() -> None:
    model = copy.deepcopy(stabilized()).train()
    before, numbers = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.inference_mode():
        found = ATTACK(model, IMAGES + 0.0, LABELS + 0)
    assert torch.equal(found.adversarial, ATTACK(stabilized(), IMAGES, LABELS).adversarial)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Counted(nn.Module):
    """The network, and how many images each of its forwards was shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.sizes = network, list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        logits: Tensor = self.network(images)
        return logits


def test_the_pool_goes_through_the_model_in_parts_and_once_until_the_model_changes() -> None:
    model, images, labels = Counted(copy.deepcopy(plain())), IMAGES[:1], LABELS[:1]
    attack = replace(ATTACK, weights=(), steps=1)
    first = attack(model, images, labels)
    study = [size for size in model.sizes if size > 1]
    assert max(study) == 64, "32 pairs"
    assert sum(size for size in study if size > 32) >= 2 * 2 * 96
    model.sizes.clear()
    again = attack(model, images, labels)
    assert set(model.sizes) == {1}
    assert torch.equal(first.adversarial, again.adversarial)
    with torch.no_grad():
        model.network[0].weight *= 1.5
    model.sizes.clear()
    changed = attack(model, images, labels)
    assert max(model.sizes) == 64
    assert torch.equal(changed.adversarial, replace(attack)(model, images, labels).adversarial)


def test_no_images_are_no_trouble() -> None:
    found = ATTACK(stabilized(), IMAGES[:0], LABELS[:0])
    assert (len(found.adversarial), len(found.evaluations)) == (0, 0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": 0}, "attack.steps"),
        ({"step_size": -0.1}, "attack.step_size"),
        ({"step_size": math.nan}, "attack.step_size"),
        ({"restarts": 0}, "attack.restarts"),
        ({"weights": (0.0, math.inf)}, "attack.weights"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: "):
        replace(ATTACK, **change)


def test_pools_layers_and_keys_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match=r"^pool: "):
        Pool(IMAGES, LABELS[:3])
    with pytest.raises(InputError, match=r"^pool: "):
        Pool(IMAGES[:0], LABELS[:0])
    with pytest.raises(InputError, match=r"^layers: "):
        replace(ATTACK, layers=("none",))(stabilized(), IMAGES, LABELS)
    with pytest.raises(InputError, match=r"^keys: "):
        ATTACK(stabilized(), IMAGES, LABELS, keys=torch.arange(3))
