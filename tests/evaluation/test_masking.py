from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import Found, GradientAttack, Threat, margin
from distsens.errors import InputError
from distsens.evaluation import Check, Transfer, masking_checks
from tests.evaluation.digit_models import THREAT, Quantized, Rippled, Scaled, part, plain, stabilized

ATTACK = GradientAttack(THREAT, steps=10, step_size=0.04)
IMAGES, LABELS = part(1000, 1110)
EVERY_CHECK = ["zero gradient", "small step", "random start", "more steps", "unbounded", "gradient-free"]


def without_gradients() -> Transfer:
    """Examples of the plain network, whose gradients nothing hides."""
    return Transfer(plain(), ATTACK, THREAT)


@cache
def checks_of(model: nn.Module, attack: GradientAttack = ATTACK) -> dict[str, Check]:
    checks = masking_checks(model, IMAGES, LABELS, attack, gradient_free=without_gradients())
    assert [check.name for check in checks] == EVERY_CHECK
    return {check.name: check for check in checks}


def failed(model: nn.Module, attack: GradientAttack = ATTACK) -> set[str]:
    return {name for name, check in checks_of(model, attack).items() if not check.passed}


@pytest.mark.parametrize("model", [plain, stabilized])
def test_an_honest_model_passes_all_checks(model: Callable[[], nn.Module]) -> None:
    assert failed(model()) == set()


@pytest.mark.parametrize("threat", [Threat("l2", 0.8), Threat("l1", 3.0)])
def test_an_honest_model_passes_in_every_norm(threat: Threat) -> None:
    attack = GradientAttack(threat, steps=10, step_size=threat.eps / 4)
    checks = masking_checks(stabilized(), *part(1000, 1080), attack)
    assert [check.name for check in checks] == EVERY_CHECK[:-1]
    assert all(check.passed for check in checks)


@cache
def quantized() -> nn.Module:
    return Quantized(plain())


def test_rounded_pixels_are_told_by_gradients_that_vanish() -> None:
    checks = checks_of(quantized())
    assert not checks["zero gradient"].passed
    assert checks["zero gradient"].values["vanished"] == 1.0
    assert not checks["unbounded"].passed
    assert checks["unbounded"].values["standing"] == 1.0
    assert not checks["gradient-free"].passed


class WithoutNumbers(nn.Module):
    """The network's logits, with a gradient that is NaN everywhere."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images + 0.0 * (images - images.detach()).sqrt())
        return outputs


def test_gradients_that_are_not_numbers_are_told_as_gradients_that_vanish() -> None:
    checks = checks_of(WithoutNumbers(plain()))
    assert checks["zero gradient"].values["vanished"] == 1.0
    assert checks["small step"].values["not rising"] == 1.0
    assert checks["unbounded"].values["standing"] == 1.0


def test_logits_that_are_too_large_are_told_and_the_margin_sees_past_them() -> None:
    assert {"zero gradient", "small step", "unbounded", "gradient-free"} <= failed(Scaled(plain()))
    on_the_margin = GradientAttack(THREAT, ATTACK.steps, ATTACK.step_size, loss=margin)
    assert failed(Scaled(plain()), on_the_margin) == set()


def test_a_shattered_loss_is_told_by_more_steps_and_by_an_attack_without_gradients() -> None:
    told = failed(Rippled(plain()))
    assert {"more steps", "gradient-free"} <= told
    assert "zero gradient" not in told


def test_sentences_say_what_was_seen_and_what_it_means() -> None:
    honest, masked = checks_of(plain()), checks_of(quantized())
    right = int((plain()(IMAGES).argmax(1) == LABELS).sum())
    assert honest["zero gradient"].sentence == (
        f"The gradient of the attack's loss vanishes at 0 of {right} images, so a gradient attack is told where to go."
    )
    assert "stands still" in masked["zero gradient"].sentence
    assert "says nothing" in masked["unbounded"].sentence


@dataclass(frozen=True)
class Breaking:
    """Finds an image of another class for the first of the images, wherever it has to look for it."""

    count: int

    def __call__(
        self,
        model: nn.Module,  # noqa: ARG002
        images: Tensor,
        labels: Tensor,
        *,
        keys: Tensor | None = None,  # noqa: ARG002
    ) -> Found:
        adversarial = images.clone()
        for i in range(self.count):
            adversarial[i] = images[labels != labels[i]][0]
        return Found(adversarial, torch.ones_like(labels))


@pytest.mark.parametrize(("count", "passed"), [(5, True), (6, False)])
def test_as_many_images_as_are_tolerated_may_show_a_symptom(count: int, passed: bool) -> None:
    weak = GradientAttack(Threat("linf", 1e-4), steps=1, step_size=1e-4)
    right = (plain()(IMAGES).argmax(1) == LABELS).nonzero().squeeze(1)[:100]
    assert len(right) == 100
    *_, check = masking_checks(
        plain(), IMAGES[right], LABELS[right], weak, gradient_free=Breaking(count), tolerance=0.05
    )
    assert check.values["missed"] == count / 100
    assert check.passed is passed
    assert f"at {count} of 100 images" in check.sentence


def test_checks_repeat_and_leave_the_model_and_the_generator_as_they_were() -> None:
    model = copy.deepcopy(plain()).train()
    before, numbers = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, second = (masking_checks(model, IMAGES[:40], LABELS[:40], ATTACK, seed=3) for _ in range(2))
    assert first == second
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), numbers)


def test_checks_that_could_show_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"^threat\.eps: "):
        masking_checks(plain(), IMAGES, LABELS, GradientAttack(Threat("linf", 0.0), 1, 0.0))
    with pytest.raises(InputError, match=r"^tolerance: "):
        masking_checks(plain(), IMAGES, LABELS, ATTACK, tolerance=math.nan)
    wrong = (plain()(IMAGES).argmax(1) + 1) % 10
    (check,) = masking_checks(plain(), IMAGES, wrong, ATTACK)
    assert (check.passed, check.values) == (False, {"right": 0.0})
