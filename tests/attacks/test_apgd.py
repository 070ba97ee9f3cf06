from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import APGD, AttackLoss, Norm, Threat, cross_entropy, dlr, pgd
from distsens.errors import InputError
from distsens.randomness import sample_keys

_THREATS = [Threat("linf", 0.15), Threat("l2", 0.75), Threat("l1", 2.0)]
_threats = pytest.mark.parametrize("threat", _THREATS, ids=lambda threat: threat.norm)
_losses = pytest.mark.parametrize(("name", "loss"), [("ce", cross_entropy), ("dlr", dlr)])

Nearest = Callable[[np.ndarray, np.ndarray, float, int], np.ndarray]
Digits = tuple[Tensor, Tensor]


class _Noisy(nn.Module):
    """Random in eval mode too; remembers the images that it saw, and its noise."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale
        self.noises: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        noise = self.scale * torch.randn_like(images)
        self.noises.append(noise.sum().item())
        outputs: Tensor = self.network(images + noise)
        return outputs


def _published(
    model: nn.Module, image: Tensor, label: Tensor, start: Tensor, threat: Threat, loss: AttackLoss, nearest: Nearest
) -> Tensor:
    """Algorithm 1 of the paper for one image and 12 steps, in numpy; its checkpoints are 3, 5, 7, 9, 10, 11 and 12."""
    x = image.double().numpy().ravel()

    def project(point: np.ndarray) -> np.ndarray:
        offset = point - x
        if threat.norm == "linf":
            return np.clip(x + np.clip(offset, -threat.eps, threat.eps), 0.0, 1.0)
        return x + nearest(offset, np.where(offset > 0, 1.0 - x, x), threat.eps, 2)

    def at(point: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(point).float().reshape(1, *image.shape).requires_grad_()
        value = loss(model(leaf), label[None]).sum()
        value.backward()
        assert leaf.grad is not None
        gradient = leaf.grad.double().numpy().ravel()
        return value.item(), np.sign(gradient) if threat.norm == "linf" else gradient / np.linalg.norm(gradient)

    previous = point = start.double().numpy().ravel()
    value, direction = at(point)
    best, eta, mark, eta_at_mark, best_at_mark = (value, point, direction), 2 * threat.eps, 0, None, value
    rises = 0
    for k in range(12):
        z = project(point + eta * direction)
        following = z if k == 0 else project(point + 0.75 * (z - point) + 0.25 * (point - previous))
        previous, point, before = point, following, value
        value, direction = at(point)
        rises += value > before
        if value > best[0]:
            best = (value, point, direction)
        if k + 1 in (3, 5, 7, 9, 10, 11, 12):
            stalled = eta == (eta_at_mark or eta) and best[0] == best_at_mark
            eta_at_mark, best_at_mark = eta, best[0]
            if rises < 0.75 * (k + 1 - mark) or stalled:
                eta /= 2
                _, point, direction = best
            mark, rises = k + 1, 0
    return torch.from_numpy(best[1]).float().reshape(image.shape)


@pytest.mark.parametrize("threat", [Threat("linf", 0.05), Threat("l2", 0.4)], ids=["linf", "l2"])
@_losses
def test_its_best_point_is_that_of_the_published_algorithm(
    threat: Threat, name: Any, loss: AttackLoss, smooth: nn.Module, images: Tensor, nearest: Nearest
) -> None:
    biased = nn.Linear(5, 5)
    with torch.no_grad():
        biased.weight.copy_(torch.eye(5))
        biased.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0, 0.0]))
    certain = nn.Sequential(smooth, biased)  # Takes every image for one of class 0, so that none ever leaves the batch.
    labels, keys = torch.zeros(12, dtype=torch.int64), torch.arange(12)
    found = APGD(threat, name, steps=12)(certain, images, labels, keys=keys)
    starts = threat.start(images, sample_keys(keys, "apgd", 0, 0), "uniform")
    expected = torch.stack(
        [_published(certain, *each, threat, loss, nearest) for each in zip(images, labels, starts, strict=True)]
    )
    values, best = (loss(certain(points), labels) for points in (found.adversarial, expected))
    torch.testing.assert_close(values, best, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.adversarial, expected, rtol=0, atol=1e-4)
    assert found.evaluations.tolist() == [14] * 12


@pytest.mark.parametrize("threat", _THREATS[:2], ids=["linf", "l2"])
@_losses
def test_its_loss_is_no_smaller_than_that_of_pgd_with_as_many_steps(
    threat: Threat, name: Any, loss: AttackLoss, trained: nn.Module, digits: Digits
) -> None:
    images, labels = digits[0][:200], digits[1][:200]
    small = threat.scaled(0.3)  # So that most images stay in the batch to the end.
    found = APGD(small, name, steps=30)(trained, images, labels)
    plain = pgd(trained, images, labels, small, steps=30, step_size=small.eps / 10, loss=loss)
    with torch.no_grad():
        outputs, others = trained(found.adversarial), trained(plain)
    kept = (outputs.argmax(1) == labels) & (others.argmax(1) == labels)
    assert kept.sum() > 100
    assert (outputs.argmax(1) == labels).sum() <= (others.argmax(1) == labels).sum() + 1
    assert loss(outputs, labels)[kept].mean() >= loss(others, labels)[kept].mean() - 1e-4


@_threats
def test_targeted_attacks_turn_to_the_classes_with_the_largest_logits_and_to_no_more_than_there_are(
    threat: Threat, smooth: nn.Module, images: Tensor
) -> None:
    weak = threat.scaled(1e-3)
    with torch.no_grad():
        outputs = smooth(images)
    labels = outputs.argmax(1)
    for targets, turns in ((1, 1), (3, 3), (4, 4), (50, 4)):
        found = APGD(weak, "dlr", steps=10, targets=targets)(smooth, images, labels)
        phases = 3 if threat.norm == "l1" else 1
        assert found.evaluations.tolist() == [1 + turns * (10 + phases)] * 12
    rival = outputs.argsort(1, descending=True)[:, 1:2]
    with torch.no_grad():
        raised = smooth(APGD(weak, "dlr", steps=10, targets=1)(smooth, images, labels).adversarial) - outputs
    ahead = raised.gather(1, rival) - raised.gather(1, labels[:, None])
    assert (ahead > 0.0).all()


@_threats
def test_more_targets_and_restarts_are_never_worse_on_any_image(
    threat: Threat, trained: nn.Module, digits: Digits
) -> None:
    images, labels = digits[0][:150], digits[1][:150]
    attack = APGD(threat.scaled(0.8), "dlr", steps=10, targets=1)
    broken = []
    for stronger in (attack, replace(attack, targets=3), replace(attack, targets=3, restarts=2)):
        with torch.no_grad():
            broken.append(trained(stronger(trained, images, labels).adversarial).argmax(1) != labels)
    assert (broken[0] <= broken[1]).all()
    assert broken[1].sum() <= broken[2].sum()
    assert broken[0].sum() < broken[2].sum()


@_threats
def test_in_a_certain_model_averaging_over_transformations_changes_nothing_but_the_cost(
    threat: Threat, smooth: nn.Module, images: Tensor
) -> None:
    labels = smooth(images).argmax(1)
    once, thrice = (APGD(threat.scaled(0.05), steps=10, eot=eot)(smooth, images, labels) for eot in (1, 3))
    torch.testing.assert_close(thrice.adversarial, once.adversarial, rtol=0, atol=1e-4)
    assert torch.equal(thrice.evaluations, 3 * once.evaluations)


def test_a_model_that_is_random_in_eval_mode_draws_anew_in_every_forward_and_leaves_the_generators_alone(
    trained: nn.Module, digits: Digits
) -> None:
    model = _Noisy(trained, 0.1).eval()
    state = torch.get_rng_state()
    APGD(Threat("linf", 0.02), steps=4, eot=5)(model, digits[0][:20], digits[1][:20])
    assert torch.equal(torch.get_rng_state(), state)
    assert len(model.noises) == 5 * (1 + 1 + 4)
    assert len(set(model.noises)) == len(model.noises)


def test_averaging_over_transformations_finds_more_against_noise(trained: nn.Module, digits: Digits) -> None:
    images, labels = digits[0][:200], digits[1][:200]
    threat, noisy = Threat("linf", 0.12), _Noisy(trained, 0.3).eval()
    successes = []
    for eot in (1, 10):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            points = APGD(threat, steps=15, eot=eot)(noisy, images, labels).adversarial
            with torch.no_grad():
                votes = torch.stack([noisy(points).softmax(1) for _ in range(50)]).mean(0)
        successes.append((votes.argmax(1) != labels).sum().item())
    assert successes[1] > successes[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("loss", "kl"), ("steps", 0), ("restarts", 0), ("eot", 0), ("targets", -1), ("targets", 9)],
)
def test_settings_that_cannot_work_are_refused(field: str, value: object) -> None:
    settings: dict[str, Any] = {field: value}
    with pytest.raises(InputError, match=rf"attack\.{field}: got ") as caught:
        APGD(Threat("linf", 0.1), **settings)
    assert caught.value.field == f"attack.{field}"


@pytest.mark.parametrize(("targets", "classes"), [(0, 2), (9, 3)])
def test_a_model_with_too_few_classes_for_its_loss_is_refused(targets: int, classes: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    attack = APGD(Threat("linf", 0.1), "dlr", targets=targets)
    with pytest.raises(InputError, match=rf"classes: got {classes}; "):
        attack(model, torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_few_steps_are_enough(norm: Norm, steps: int, smooth: nn.Module, images: Tensor) -> None:
    labels = smooth(images).argmax(1)
    found = APGD(Threat(norm, 1e-5), steps=steps)(smooth, images, labels)
    phases = 1 + 2 * (norm == "l1" and steps > 3)
    assert found.evaluations.tolist() == [1 + phases + steps] * 12
