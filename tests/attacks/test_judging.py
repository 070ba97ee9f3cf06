"""What holds of every attack that judges a classifier."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import APGD, JudgingAttack, Square, Threat, cross_entropy, dlr, margin
from distsens.errors import InputError
from distsens.randomness import sample_keys

_THREATS = [Threat("linf", 0.12), Threat("l2", 0.6), Threat("l1", 2.0)]
_ATTACKS: dict[str, Callable[[Threat], JudgingAttack]] = {
    "apgd-ce": lambda threat: APGD(threat, steps=10, restarts=2),
    "apgd-dlr": lambda threat: APGD(threat, "dlr", steps=10),
    "apgd-t": lambda threat: APGD(threat, "dlr", steps=8, targets=3),
    "square": lambda threat: Square(threat, queries=40, restarts=2),
}
_threats = pytest.mark.parametrize("threat", _THREATS, ids=lambda threat: threat.norm)
_attacks = pytest.mark.parametrize("name", _ATTACKS)

Digits = tuple[Tensor, Tensor]


class _Counting(nn.Module):
    """Adds up how many images it is shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.shown = network, 0

    def forward(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        outputs: Tensor = self.network(images)
        return outputs


@_threats
@_attacks
def test_examples_lie_in_the_ball_and_in_the_pixel_range(
    name: str, threat: Threat, trained: nn.Module, digits: Digits
) -> None:
    images, labels = digits[0][:100], digits[1][:100]
    original = images.clone()
    found = _ATTACKS[name](threat)(trained, images, labels)
    assert (threat.distance(images.double(), found.adversarial.double()) <= threat.eps + 1e-6).all()
    assert found.adversarial.min() >= 0.0
    assert found.adversarial.max() <= 1.0
    assert found.adversarial.dtype == torch.float32
    assert not found.adversarial.requires_grad
    assert torch.equal(images, original)


@_threats
@_attacks
def test_large_images_stay_in_the_ball_too(name: str, threat: Threat) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 40 * 32, 5))
        images = torch.rand(4, 3, 40, 32)
    ball = threat.scaled(6.0)
    labels = model(images).argmax(1)
    found = _ATTACKS[name](ball)(model, images, labels)
    assert (ball.distance(images.double(), found.adversarial.double()) <= ball.eps + 1e-6 * max(1.0, ball.eps)).all()


@_threats
@_attacks
def test_some_images_are_broken_and_each_costs_what_the_classifier_was_shown(
    name: str, threat: Threat, trained: nn.Module, digits: Digits
) -> None:
    images, labels = digits[0][:100], digits[1][:100]
    model = _Counting(trained).eval()
    found = _ATTACKS[name](threat)(model, images, labels)
    assert found.evaluations.dtype == torch.int64
    assert found.evaluations.sum() == model.shown
    with torch.no_grad():
        broken = trained(found.adversarial).argmax(1) != labels
    assert broken.any()
    assert not broken.all()
    assert found.evaluations[broken].max() <= found.evaluations[~broken].min()
    assert (found.evaluations[~broken] == found.evaluations.max()).all()


@_threats
@_attacks
def test_an_image_that_is_misclassified_already_costs_one_evaluation_and_stays_as_it_is(
    name: str, threat: Threat, trained: nn.Module, digits: Digits
) -> None:
    images, labels = digits[0][:30], digits[1][:30].clone()
    with torch.no_grad():
        labels[::3] = (trained(images[::3]).argmax(1) + 1) % 10
        wrong = trained(images).argmax(1) != labels
    found = _ATTACKS[name](threat)(trained, images, labels)
    assert (found.evaluations[wrong] == 1).all()
    assert torch.equal(found.adversarial[wrong], images[wrong])
    assert (found.evaluations[~wrong] > 1).all()


@_threats
@_attacks
def test_what_is_found_for_an_image_depends_on_its_key_and_not_on_its_batch(
    name: str, threat: Threat, smooth: nn.Module, images: Tensor
) -> None:
    labels, keys = smooth(images).argmax(1), sample_keys(torch.arange(12), 0, "attack")
    attack = _ATTACKS[name](threat.scaled(0.5))
    together = attack(smooth, images, labels, keys=keys)
    torch.manual_seed(77)
    again = attack(smooth, images, labels, keys=keys)
    assert torch.equal(again.adversarial, together.adversarial)
    assert torch.equal(again.evaluations, together.evaluations)
    some = torch.tensor([7, 2, 9])
    apart = attack(smooth, images[some], labels[some], keys=keys[some])
    torch.testing.assert_close(apart.adversarial, together.adversarial[some], rtol=0, atol=1e-4)
    assert torch.equal(apart.evaluations, together.evaluations[some])
    other = attack(smooth, images, labels, keys=keys + 1)
    assert not torch.equal(other.adversarial, together.adversarial)
    numbered = attack(smooth, images, labels, keys=torch.arange(12))
    assert torch.equal(attack(smooth, images, labels).adversarial, numbered.adversarial)


@_threats
@_attacks
def test_the_model_is_left_as_it_was(name: str, threat: Threat, images: Tensor, labels: Tensor) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(64, 5)
    )
    model[0].weight.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    _ATTACKS[name](threat)(model, images, labels)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, *[True] * 5]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


@_threats
@_attacks
def test_an_image_that_withstands_ends_with_a_larger_loss(
    name: str, threat: Threat, trained: nn.Module, digits: Digits
) -> None:
    images, labels = digits[0][:100], digits[1][:100]
    loss = {"apgd-ce": cross_entropy, "apgd-dlr": dlr}.get(name, margin)
    found = _ATTACKS[name](threat.scaled(0.4))(trained, images, labels)
    with torch.no_grad():
        before, after = trained(images), trained(found.adversarial)
    stands = after.argmax(1) == labels
    assert stands.any()
    if name != "apgd-t":
        assert (loss(after, labels) >= loss(before, labels) - 1e-4)[stands].all()
    assert loss(after, labels)[stands].mean() > loss(before, labels)[stands].mean()


@_threats
@_attacks
def test_gradients_and_inference_mode_of_the_caller_do_not_matter(
    name: str, threat: Threat, smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    attack = _ATTACKS[name](threat)
    expected = attack(smooth, images, labels).adversarial
    with torch.no_grad():
        assert torch.equal(attack(smooth, images, labels).adversarial, expected)
    with torch.inference_mode():
        assert torch.equal(attack(smooth, images.clone(), labels.clone()).adversarial, expected)


@_threats
@_attacks
def test_an_empty_batch_gives_an_empty_batch(name: str, threat: Threat, smooth: nn.Module, images: Tensor) -> None:
    found = _ATTACKS[name](threat)(smooth, images[:0], torch.zeros(0, dtype=torch.int64))
    assert found.adversarial.shape == (0, 3, 6, 6)
    assert found.evaluations.shape == (0,)


@_attacks
def test_without_radius_the_examples_are_the_images(name: str, smooth: nn.Module, images: Tensor) -> None:
    labels = smooth(images).argmax(1)
    for threat in _THREATS:
        found = _ATTACKS[name](threat.scaled(0.0))(smooth, images, labels)
        assert torch.equal(found.adversarial, images)


@_attacks
def test_pixels_and_keys_that_cannot_be_are_refused(name: str, smooth: nn.Module, images: Tensor) -> None:
    attack, labels = _ATTACKS[name](_THREATS[0]), torch.zeros(12, dtype=torch.int64)
    with pytest.raises(InputError, match=r"pixels must lie in \[0, 1\]"):
        attack(smooth, 255 * images, labels)
    with pytest.raises(InputError, match="one key for each of the 12 images"):
        attack(smooth, images, labels, keys=torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(("field", "value"), [("queries", 0), ("restarts", 0), ("p_init", 0.0), ("p_init", 1.5)])
def test_settings_of_square_that_cannot_work_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"attack\.{field}: got "):
        Square(_THREATS[0], **{field: value})  # type: ignore[arg-type]
