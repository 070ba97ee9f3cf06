from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distsens.attacks import (
    GradientAttack,
    Threat,
    attack_named,
    bim,
    cross_entropy,
    cw_pgd,
    fast_fgsm,
    fgsm,
    kl_divergence,
    least_likely,
    margin,
    mim,
    pgd,
    step_ll,
)
from distsens.errors import InputError
from distsens.randomness import sample_keys

_THREATS = [Threat("linf", 0.12), Threat("l2", 0.75), Threat("l1", 3.0)]
_ROUNDING = 1e-5

Attack = Callable[..., Tensor]
_ATTACKS: dict[str, Callable[[Threat], Attack]] = {
    "fgsm": lambda _: fgsm,
    "fast_fgsm": lambda _: fast_fgsm,
    "bim": lambda _: partial(bim, steps=5),
    "mim": lambda _: partial(mim, steps=5),
    "step_ll": lambda _: step_ll,
    "pgd": lambda threat: partial(pgd, steps=5, step_size=threat.eps / 2),
    "cw_pgd": lambda threat: partial(cw_pgd, steps=5, step_size=threat.eps / 2),
}
_RANDOM = ("fast_fgsm", "pgd", "cw_pgd")
_names = pytest.mark.parametrize("name", _ATTACKS)
_aimed = pytest.mark.parametrize("name", [name for name in _ATTACKS if name != "step_ll"])
_threats = pytest.mark.parametrize("threat", _THREATS, ids=lambda threat: threat.norm)


def _gradient(model: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    points = points.clone().requires_grad_()
    F.cross_entropy(model(points), labels, reduction="sum").backward()
    assert points.grad is not None
    return points.grad


@_threats
@_names
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_every_attack_stays_in_the_ball_and_in_the_pixel_range(
    name: str, threat: Threat, precision: torch.dtype | None, smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    original = images.clone()
    adversarial = _ATTACKS[name](threat)(smooth, images, labels, threat, precision=precision)
    distance = threat.distance(images, adversarial)
    assert (distance <= threat.eps + _ROUNDING).all()
    assert (distance > 0.2 * threat.eps).all()
    assert adversarial.min() >= 0.0
    assert adversarial.max() <= 1.0
    assert torch.equal(images, original)


@_threats
@_aimed
def test_every_attack_raises_the_loss_and_lowers_it_where_it_is_targeted(
    name: str, threat: Threat, trained: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits[0][:200], digits[1][:200]
    others = (labels + 1) % 10
    attack = _ATTACKS[name](threat)
    away = attack(trained, images, labels, threat)
    towards = attack(trained, images, others, threat, targeted=True)
    with torch.no_grad():
        benign, away, towards = trained(images), trained(away), trained(towards)
    assert cross_entropy(away, labels).mean() > 1.5 * cross_entropy(benign, labels).mean()
    chances = [logits.softmax(1)[torch.arange(200), others].mean() for logits in (benign, away, towards)]
    assert chances[2] > 2 * chances[0]
    assert chances[2] > chances[1]


@_threats
@_names
def test_keys_alone_decide_a_random_start(
    name: str, threat: Threat, smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    attack = _ATTACKS[name](threat)
    if name not in _RANDOM:
        assert torch.equal(attack(smooth, images, labels, threat), attack(smooth, images, labels, threat))
        return
    keys = sample_keys(torch.arange(12), 0)
    first = attack(smooth, images, labels, threat, keys=keys)
    torch.manual_seed(5)
    assert torch.equal(attack(smooth, images, labels, threat, keys=keys), first)
    assert not torch.equal(attack(smooth, images, labels, threat, keys=sample_keys(torch.arange(12), 1)), first)
    apart = attack(smooth, images[3:5], labels[3:5], threat, keys=keys[3:5])
    torch.testing.assert_close(apart, first[3:5], rtol=0, atol=_ROUNDING)


@_threats
def test_pgd_has_a_larger_loss_than_fgsm_and_cw_pgd_a_larger_margin(
    threat: Threat, trained: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits[0][:400], digits[1][:400]
    once = fgsm(trained, images, labels, threat)
    often, far = (
        attack(trained, images, labels, threat, steps=20, step_size=threat.eps / 4, random_start="none")
        for attack in (pgd, cw_pgd)
    )
    with torch.no_grad():
        once, often, far = trained(once), trained(often), trained(far)
    assert cross_entropy(often, labels).mean() > cross_entropy(once, labels).mean()
    assert cross_entropy(often, labels).mean() >= cross_entropy(far, labels).mean()
    assert margin(far, labels).mean() > margin(once, labels).mean()
    assert (far.argmax(1) != labels).double().mean() == pytest.approx(
        (often.argmax(1) != labels).double().mean().item(), abs=0.05
    )


@pytest.mark.parametrize("eps", [0.0, 0.03, 0.2])
def test_fgsm_is_the_image_plus_eps_times_the_sign_of_the_gradient(
    eps: float, smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    points = images.clone().requires_grad_()
    F.cross_entropy(smooth(points), labels).backward()
    assert points.grad is not None
    expected = (images + eps * points.grad.sign()).clamp(0.0, 1.0)
    torch.testing.assert_close(fgsm(smooth, images, labels, Threat("linf", eps)), expected, rtol=0, atol=1e-6)


def test_fgsm_in_l2_is_one_step_of_length_eps_along_the_gradient(smooth: nn.Module, labels: Tensor) -> None:
    grey = torch.full((12, 3, 6, 6), 0.5)
    points = grey.clone().requires_grad_()
    F.cross_entropy(smooth(points), labels, reduction="sum").backward()
    assert points.grad is not None
    adversarial = fgsm(smooth, grey, labels, Threat("l2", 0.4))
    torch.testing.assert_close(Threat("l2", 0.4).distance(grey, adversarial), torch.full((12,), 0.4))
    cosine = F.cosine_similarity((adversarial - grey).flatten(1), points.grad.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(12))


def test_fast_fgsm_is_a_uniform_start_and_one_step_of_one_and_a_quarter_eps(
    smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    threat, keys = Threat("linf", 0.1), torch.arange(12) + 9
    start = threat.start(images, sample_keys(keys, "start", 0), "uniform")
    moved = start + 1.25 * 0.1 * _gradient(smooth, start, labels).sign()
    expected = (images + (moved - images).clamp(-0.1, 0.1)).clamp(0.0, 1.0)
    adversarial = fast_fgsm(smooth, images, labels, threat, keys=keys)
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=1e-6)


def test_bim_is_fgsm_again_and_again(smooth: nn.Module, images: Tensor, labels: Tensor) -> None:
    threat, points = Threat("linf", 0.1), images
    for _ in range(4):
        points = (points + 0.025 * _gradient(smooth, points, labels).sign()).clamp(0.0, 1.0)
    adversarial = bim(smooth, images, labels, threat, steps=4)
    torch.testing.assert_close(adversarial, points, rtol=0, atol=_ROUNDING)
    assert torch.equal(mim(smooth, images, labels, threat, steps=4, momentum=0.0), adversarial)
    assert torch.equal(bim(smooth, images, labels, threat, steps=1), fgsm(smooth, images, labels, threat))


def test_mim_steps_along_the_decaying_sum_of_the_gradients_over_their_l1_norms(
    smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    points, total = images, torch.zeros_like(images)
    for _ in range(6):
        gradient = _gradient(smooth, points, labels)
        total = 0.8 * total + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
        points = (images + (points + 0.03 * total.sign() - images).clamp(-0.1, 0.1)).clamp(0.0, 1.0)
    adversarial = mim(smooth, images, labels, Threat("linf", 0.1), steps=6, step_size=0.03, momentum=0.8)
    torch.testing.assert_close(adversarial, points, rtol=0, atol=_ROUNDING)


def test_step_ll_is_one_step_of_eps_towards_the_least_likely_class_whatever_the_labels(
    smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    logits = smooth(images)
    expected = (images - 0.05 * _gradient(smooth, images, logits.argmin(1)).sign()).clamp(0.0, 1.0)
    threat = Threat("linf", 0.05)
    for unused in (labels, logits):
        torch.testing.assert_close(step_ll(smooth, images, unused, threat), expected, rtol=0, atol=1e-6)
    attack = attack_named("step_ll", threat)
    assert torch.equal(attack(smooth, images, logits, loss=kl_divergence), step_ll(smooth, images, labels, threat))
    target = logits.argmin(1, keepdim=True)
    assert (smooth(expected).softmax(1).gather(1, target) > logits.softmax(1).gather(1, target)).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fgsm", {"steps": 1, "step_size": 0.25, "random_start": "none"}),
        ("fast_fgsm", {"steps": 1, "step_size": 0.3125, "random_start": "uniform"}),
        ("bim", {"steps": 4, "step_size": 0.0625, "random_start": "none"}),
        ("mim", {"steps": 4, "step_size": 0.0625, "random_start": "none", "momentum": 0.9}),
        ("step_ll", {"steps": 1, "step_size": 0.25, "random_start": "none", "loss": least_likely}),
        ("pgd", {"steps": 4, "step_size": 0.15625, "random_start": "normal"}),
        ("cw_pgd", {"steps": 4, "step_size": 0.15625, "random_start": "normal", "loss": margin}),
    ],
)
def test_a_name_stands_for_its_papers_settings(name: Any, expected: dict[str, Any]) -> None:
    attack = attack_named(name, Threat("linf", 0.25), steps=4, random_start="normal", momentum=0.9, l1_fraction=0.3)
    assert attack == GradientAttack(Threat("linf", 0.25), **expected, l1_fraction=0.3)
    assert attack.gradient_evaluations == expected["steps"]


@pytest.mark.parametrize("name", ["fgsm", "step_ll"])
def test_a_step_size_for_an_attack_that_has_its_own_is_refused(name: Any) -> None:
    with pytest.raises(InputError, match=rf"attack\.step_size: got 0.1; {name} takes one step of length eps"):
        attack_named(name, Threat("linf", 0.2), step_size=0.1)


def test_no_steps_are_refused() -> None:
    with pytest.raises(InputError, match=r"attack\.steps: got 0"):
        attack_named("pgd", Threat("linf", 0.2), steps=0)
