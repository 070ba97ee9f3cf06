from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import (
    AttackLoss,
    GradientAttack,
    Norm,
    RandomStart,
    Threat,
    cross_entropy,
    fgsm,
    kl_divergence,
    margin,
    pgd,
)
from distsens.errors import InputError
from distsens.randomness import sample_keys

_THREATS = [Threat("linf", 0.1), Threat("l2", 0.8), Threat("l1", 4.0)]
_STRONG = [Threat("linf", 0.15), Threat("l2", 0.75), Threat("l1", 2.0)]
_ROUNDING = 1e-5

Nearest = Callable[[np.ndarray, np.ndarray, float, int], np.ndarray]


def _plain_step(threat: Threat, point: np.ndarray, gradient: np.ndarray, size: float) -> np.ndarray:
    """One step from the point (flat), as in a textbook."""
    if threat.norm == "linf":
        return size * np.sign(gradient)
    if threat.norm == "l2":
        return size * gradient / np.linalg.norm(gradient)
    movable = np.where(gradient > 0, point < 1, point > 0)
    order = np.argsort(-np.abs(gradient * movable))[: math.ceil(0.01 * len(point))]
    step = np.zeros_like(gradient)
    step[order] = size / len(order) * np.sign(gradient[order])
    return step


def _plain_attack(
    attack: GradientAttack,
    model: nn.Module,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    nearest: Nearest,
    loss: AttackLoss = cross_entropy,
) -> Tensor:
    """The attack as in a textbook: one image at a time, with ``backward``, in numpy."""
    threat, results = attack.threat, []
    for image, point, label in zip(images, start, labels, strict=True):
        x, at = image.double().numpy().ravel(), point.double().numpy().ravel()
        velocity = np.zeros_like(x)
        for _ in range(attack.steps):
            leaf = torch.from_numpy(at).float().reshape(1, *image.shape).requires_grad_()
            loss(model(leaf), label[None]).sum().backward()
            assert leaf.grad is not None
            gradient = leaf.grad.double().numpy().ravel()
            velocity = attack.momentum * velocity + gradient / np.abs(gradient).sum()
            offset = at + _plain_step(threat, at, velocity, attack.step_size) - x
            if threat.norm == "linf":
                offset = np.clip(offset, -threat.eps, threat.eps)
            else:
                reach = np.where(offset > 0, 1 - x, x)
                offset = nearest(offset, reach, threat.eps, 2 if threat.norm == "l2" else 1)
            at = np.clip(x + offset, 0.0, 1.0)
        results.append(torch.from_numpy(at).float().reshape(image.shape))
    return torch.stack(results)


@pytest.mark.parametrize("threat", _THREATS)
@pytest.mark.parametrize("random_start", ["uniform", "normal", "none"])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_an_attack_equals_the_plain_loop(
    threat: Threat,
    random_start: RandomStart,
    momentum: float,
    loss: AttackLoss,
    smooth: nn.Module,
    images: Tensor,
    labels: Tensor,
    nearest: Nearest,
) -> None:
    attack = GradientAttack(threat, 5, threat.eps / 4, random_start, momentum=momentum)
    keys = torch.arange(12) + 40
    start = threat.start(images, sample_keys(keys, "start", 0), random_start)
    expected = _plain_attack(attack, smooth, start, images, labels, nearest, loss)
    adversarial = attack(smooth, images, labels, loss=loss, keys=keys)
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=_ROUNDING)


@pytest.mark.parametrize("threat", _THREATS)
def test_a_targeted_attack_descends_the_loss(
    threat: Threat, smooth: nn.Module, images: Tensor, labels: Tensor, nearest: Nearest
) -> None:
    attack = GradientAttack(threat, 4, threat.eps / 4, "none")
    expected = _plain_attack(
        attack, smooth, images, images, labels, nearest, lambda logits, targets: -cross_entropy(logits, targets)
    )
    adversarial = attack(smooth, images, labels, targeted=True)
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=_ROUNDING)


def test_its_own_loss_goes_before_the_callers(smooth: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = GradientAttack(Threat("linf", 0.1), 3, 0.05)
    own = replace(attack, loss=margin)
    assert torch.equal(own(smooth, images, labels), attack(smooth, images, labels, loss=margin))
    assert not torch.equal(own(smooth, images, labels), attack(smooth, images, labels))


@pytest.mark.parametrize("threat", _THREATS)
@pytest.mark.parametrize("random_start", ["uniform", "normal", "none"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_examples_stay_in_the_ball_and_in_the_pixel_range(
    threat: Threat, random_start: str, precision: torch.dtype | None, smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    original = images.clone()
    adversarial = pgd(
        smooth,
        images,
        labels,
        threat,
        steps=6,
        step_size=threat.eps,
        random_start=random_start,
        restarts=2,
        precision=precision,
    )
    distance = threat.distance(images, adversarial)
    assert (distance <= threat.eps + _ROUNDING).all()
    assert (distance > 0.5 * threat.eps).all()
    assert adversarial.min() >= 0.0
    assert adversarial.max() <= 1.0
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    assert torch.equal(images, original)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("restarts", [1, 2])
def test_without_radius_the_examples_are_the_images(
    norm: Norm, restarts: int, smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    adversarial = pgd(smooth, images, labels, Threat(norm, 0.0), steps=3, step_size=0.1, restarts=restarts)
    assert torch.equal(adversarial, images)
    assert adversarial.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("threat", _THREATS)
def test_an_empty_batch_gives_an_empty_batch(threat: Threat, smooth: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = GradientAttack(threat, steps=2, step_size=0.2, restarts=2)
    assert attack(smooth, images[:0], labels[:0]).shape == (0, 3, 6, 6)


@pytest.mark.parametrize("threat", _THREATS)
def test_the_example_of_an_image_depends_on_its_key_and_not_on_its_batch(
    threat: Threat, smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    attack = GradientAttack(threat, steps=4, step_size=threat.eps / 3, restarts=2)
    keys = sample_keys(torch.arange(12), 0, "attack")
    together = attack(smooth, images, labels, keys=keys)
    torch.manual_seed(77)
    some = torch.tensor([7, 2, 9])
    apart = attack(smooth, images[some], labels[some], keys=keys[some])
    torch.testing.assert_close(apart, together[some], rtol=0, atol=_ROUNDING)


@pytest.mark.parametrize("threat", _THREATS)
def test_the_same_keys_give_the_same_examples_and_other_keys_others(
    threat: Threat, smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    attack = GradientAttack(threat, steps=1, step_size=threat.eps / 10)
    keys = sample_keys(torch.arange(12), 0)
    first = attack(smooth, images, labels, keys=keys)
    torch.manual_seed(78)
    assert torch.equal(attack(smooth, images, labels, keys=keys), first)
    other = attack(smooth, images, labels, keys=sample_keys(torch.arange(12), 1))
    assert (threat.distance(first, other) > 0).all()
    assert torch.equal(attack(smooth, images, labels), attack(smooth, images, labels, keys=torch.arange(12)))


@pytest.mark.parametrize("threat", _STRONG)
@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_restarts_keep_the_misclassified_attempt_and_then_the_one_with_the_largest_loss(
    threat: Threat, loss: AttackLoss, trained: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits[0][:300], digits[1][:300]
    attack = GradientAttack(threat, steps=2, step_size=threat.eps / 2, random_start="none")
    keys = torch.arange(300)
    attempts = []
    for restart in range(3):
        points = threat.start(images, sample_keys(keys, "start", restart), "uniform")
        for _ in range(attack.steps):
            points = points.detach().requires_grad_()
            (gradients,) = torch.autograd.grad(loss(trained(points), labels).sum(), points)
            points = threat.project(threat.ascend(points, gradients, attack.step_size), images).detach()
        attempts.append(points)
    with torch.no_grad():
        outputs = [trained(points) for points in attempts]
        wrong = torch.stack([output.argmax(1) != labels for output in outputs])
        values = torch.stack([loss(output, labels) for output in outputs])
        assert (wrong.any(0) & ~wrong[0]).any(), "no image on which restarts make a difference"
        found = trained(
            replace(attack, random_start="uniform", restarts=3)(trained, images, labels, loss=loss, keys=keys)
        )
    best = torch.where(wrong == wrong.any(0), values, -math.inf).amax(0)
    assert torch.equal(found.argmax(1) != labels, wrong.any(0))
    torch.testing.assert_close(loss(found, labels), best, rtol=1e-4, atol=1e-4)


def test_restarts_of_a_targeted_attack_keep_the_attempt_taken_for_the_target(
    trained: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, targets = digits[0][:300], (digits[1][:300] + 1) % 10
    attack = GradientAttack(Threat("linf", 0.25), steps=2, step_size=0.125)
    with torch.no_grad():
        attempts = [
            trained(attack(trained, images, targets, targeted=True, keys=torch.arange(300))),
            trained(replace(attack, restarts=3)(trained, images, targets, targeted=True, keys=torch.arange(300))),
        ]
    hit, hit_by_more = (attempt.argmax(1) == targets for attempt in attempts)
    assert (hit_by_more >= hit).all()
    assert hit_by_more.sum() > hit.sum()
    once, thrice = (cross_entropy(attempt, targets) for attempt in attempts)
    assert (thrice <= once + 1e-4)[hit == hit_by_more].all()


@pytest.mark.parametrize("threat", _STRONG)
def test_more_restarts_are_never_worse_on_any_image(
    threat: Threat, trained: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits[0][:300], digits[1][:300]
    attack = GradientAttack(threat, steps=3, step_size=threat.eps / 2)
    keys = sample_keys(torch.arange(300), 5)
    previous_wrong, previous_loss = torch.zeros(300, dtype=torch.bool), torch.full((300,), -math.inf)
    for restarts in (1, 2, 4):
        with torch.no_grad():
            outputs = trained(replace(attack, restarts=restarts)(trained, images, labels, keys=keys))
        wrong, loss = outputs.argmax(1) != labels, cross_entropy(outputs, labels)
        assert (wrong >= previous_wrong).all()
        assert (loss >= previous_loss - 1e-4)[wrong == previous_wrong].all()
        previous_wrong, previous_loss = wrong, loss


@pytest.mark.parametrize("threat", _STRONG)
def test_more_steps_are_stronger_on_a_trained_network(
    threat: Threat, trained: nn.Module, digits: tuple[Tensor, Tensor], success: Callable[[Tensor], float]
) -> None:
    images, labels = digits[0][:600], digits[1][:600]

    def mean_loss(adversarial: Tensor) -> float:
        with torch.no_grad():
            return cross_entropy(trained(adversarial), labels).mean().item()

    once = fgsm(trained, images, labels, threat)
    few, many = (
        pgd(trained, images, labels, threat, steps=steps, step_size=threat.eps / 4, random_start="none")
        for steps in (5, 20)
    )
    assert success(images) + 10.0 < success(once) < success(few) <= success(many) < 90.0
    assert mean_loss(images) < mean_loss(once) < mean_loss(few) < mean_loss(many)


@pytest.mark.parametrize("threat", _STRONG)
def test_bfloat16_succeeds_nearly_as_often_as_float32(
    threat: Threat, trained: nn.Module, digits: tuple[Tensor, Tensor], success: Callable[[Tensor], float]
) -> None:
    images, labels = digits[0][:600], digits[1][:600]
    attack = GradientAttack(threat, steps=10, step_size=threat.eps / 4)
    exact = attack(trained, images, labels)
    rough = replace(attack, precision=torch.bfloat16)(trained, images, labels)
    assert not torch.equal(rough, exact)
    assert success(rough) == pytest.approx(success(exact), abs=2.0)
    assert (threat.distance(images, rough) <= threat.eps + _ROUNDING).all()


def test_a_confident_network_is_attacked_in_l2_although_its_gradients_nearly_vanish(
    trained: nn.Module, digits: tuple[Tensor, Tensor], success: Callable[[Tensor], float]
) -> None:
    images, labels = digits[0][:200], digits[1][:200]

    class Confident(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 4.0 * trained(x)

    attack = GradientAttack(Threat("l2", 0.75), steps=10, step_size=0.2, random_start="none")
    assert success(attack(Confident(), images, labels)) > success(attack(trained, images, labels)) - 3.0


def test_the_kl_divergence_to_the_benign_prediction_can_be_attacked(smooth: nn.Module, images: Tensor) -> None:
    benign = smooth(images)  # With its graph, as a training step has it.
    attack = GradientAttack(Threat("linf", 0.1), steps=5, step_size=0.03, random_start="normal", restarts=2)
    adversarial = attack(smooth, images, benign, loss=kl_divergence)
    start = attack.threat.start(images, sample_keys(torch.arange(12), "start", 0), "normal")
    assert (kl_divergence(smooth(adversarial), benign) > 10.0 * kl_divergence(smooth(start), benign)).all()
    benign.sum().backward()
    assert all(p.grad is not None for p in smooth.parameters())


def test_targets_may_be_made_in_inference_mode(smooth: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = GradientAttack(Threat("l2", 0.5), steps=2, step_size=0.2)
    with torch.inference_mode():
        benign, copied = smooth(images), labels.clone()
    assert torch.equal(attack(smooth, images, copied), attack(smooth, images, labels))
    torch.testing.assert_close(
        attack(smooth, images, benign, loss=kl_divergence), attack(smooth, images, benign.clone(), loss=kl_divergence)
    )


def test_an_attack_counts_its_gradient_evaluations(smooth: nn.Module, images: Tensor, labels: Tensor) -> None:
    with_gradient: list[bool] = []
    smooth.register_forward_hook(lambda *_: with_gradient.append(torch.is_grad_enabled()))
    attack = GradientAttack(Threat("linf", 0.1), steps=3, step_size=0.05, restarts=2)
    attack(smooth, images, labels)
    assert sum(with_gradient) == attack.gradient_evaluations == 6


def test_an_attack_with_its_settings_is_the_function_and_travels_between_processes(
    smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    attack = GradientAttack(Threat("l2", 0.5), 3, 0.2, random_start="normal", restarts=2, precision=torch.bfloat16)
    keys = torch.arange(12) + 5
    expected = pgd(
        smooth,
        images,
        labels,
        Threat("l2", 0.5),
        steps=3,
        step_size=0.2,
        random_start="normal",
        restarts=2,
        loss=margin,
        keys=keys,
        precision=torch.bfloat16,
    )
    assert torch.equal(attack(smooth, images, labels, loss=margin, keys=keys), expected)
    assert pickle.loads(pickle.dumps(attack)) == attack


def test_a_scaled_attack_has_scaled_steps_in_a_scaled_ball() -> None:
    attack = GradientAttack(Threat("linf", 0.5), steps=3, step_size=0.25, restarts=2)
    assert attack.scaled(0.5) == GradientAttack(Threat("linf", 0.25), steps=3, step_size=0.125, restarts=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", -1),
        ("restarts", 0),
        ("step_size", -0.1),
        ("step_size", math.nan),
        ("step_size", math.inf),
        ("random_start", "gaussian"),
        ("momentum", -0.5),
        ("momentum", math.nan),
        ("l1_fraction", 0.0),
        ("l1_fraction", 1.5),
    ],
)
def test_settings_that_cannot_work_are_refused(
    field: str, value: object, smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    settings: dict[str, Any] = {"steps": 2, "step_size": 0.1, field: value}
    with pytest.raises(InputError, match=rf"attack\.{field}: got ") as caught:
        GradientAttack(Threat("linf", 0.1), **settings)(smooth, images, labels)
    assert caught.value.field == f"attack.{field}"


def test_images_outside_the_pixel_domain_are_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    images, labels = torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64)
    threat = Threat("linf", 0.1)
    for wrong in (images * 255, images - 0.5, images * torch.nan):
        with pytest.raises(InputError, match=r"pixels must lie in \[0, 1\]; normalise inside the model"):
            pgd(model, wrong, labels, threat, steps=1, step_size=0.1)
    assert pgd(model, images + 1e-5, labels, threat, steps=1, step_size=0.1).max() <= 1


def test_a_key_for_every_image() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    images, labels = torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(InputError, match="one key for each of the 4 images"):
        pgd(model, images, labels, Threat("linf", 0.1), steps=1, step_size=0.1, keys=torch.zeros(1, dtype=torch.int64))
