"""What FAB, DeepFool and Carlini and Wagner's attack have in common."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import FAB, CarliniWagner, DeepFool, JudgingAttack, Norm, Threat
from distsens.errors import InputError

_ATTACKS = [
    pytest.param(FAB(Threat("linf", 0.03), steps=6, restarts=2, targets=2), id="fab-linf"),
    pytest.param(FAB(Threat("l2", 0.3), steps=6, restarts=2, targets=2), id="fab-l2"),
    pytest.param(FAB(Threat("l1", 1.5), steps=6, restarts=2, targets=2), id="fab-l1"),
    pytest.param(FAB(Threat("l2", 0.3), steps=6, targets=0), id="fab-untargeted"),
    pytest.param(
        CarliniWagner(Threat("l2", 0.3), steps=15, binary_search_steps=3, lr=0.05, initial_const=1.0), id="cw"
    ),
    pytest.param(DeepFool(Threat("l2", 0.3)), id="deepfool-l2"),
    pytest.param(DeepFool(Threat("linf", 0.03)), id="deepfool-linf"),
]
_EACH = pytest.mark.parametrize("attack", _ATTACKS)
_BALLS: list[tuple[Norm, float]] = [("linf", 1.0), ("l2", 100.0), ("l1", 100.0)]
_Attack = FAB | CarliniWagner | DeepFool


@pytest.fixture
def predicted(smooth: nn.Module, images: Tensor) -> Tensor:
    """The labels that the network gives: it is right about every image, until that is attacked."""
    with torch.no_grad():
        return smooth(images).argmax(1)


@_EACH
def test_what_is_given_lies_in_the_ball_and_in_the_pixel_range(
    attack: _Attack, smooth: nn.Module, images: Tensor, predicted: Tensor
) -> None:
    threat = attack.threat
    closest = attack.closest(smooth, images, predicted)
    assert (closest.distances > threat.eps).any()
    assert (closest.distances <= threat.eps).any()
    adversarial = attack(smooth, images, predicted).adversarial
    assert (threat.distance(images.double(), adversarial.double()) <= threat.eps + 1e-6).all()
    assert adversarial.min() >= 0.0
    assert adversarial.max() <= 1.0
    assert adversarial.dtype == torch.float32


@_EACH
def test_examples_are_misclassified_at_the_distance_said_and_inside_the_ball_given_as_they_are(
    attack: _Attack, smooth: nn.Module, images: Tensor, predicted: Tensor
) -> None:
    closest, found = attack.closest(smooth, images, predicted), attack(smooth, images, predicted)
    has = closest.distances.isfinite()
    assert has.sum() >= 10
    assert (smooth(closest.examples[has]).argmax(1) != predicted[has]).all()
    assert torch.equal(closest.examples[~has], images[~has])
    torch.testing.assert_close(attack.threat.distance(images, closest.examples)[has], closest.distances[has])
    inside = closest.distances <= attack.threat.eps
    assert torch.equal(found.adversarial[inside], closest.examples[inside])
    assert torch.equal(found.evaluations, closest.evaluations)


class _Precise(nn.Module):
    """Computes in float64, so that rounding does not depend on the batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images.double())
        return outputs


@_EACH
def test_an_image_is_attacked_alike_alone_and_in_a_batch(
    attack: _Attack, smooth: nn.Module, images: Tensor, predicted: Tensor
) -> None:
    keys = 10 * torch.arange(12)
    model = _Precise(smooth)
    together = attack(model, images, predicted, keys=keys)
    for row in (1, 7):
        one = slice(row, row + 1)
        alone = attack(model, images[one], predicted[one], keys=keys[one])
        torch.testing.assert_close(alone.adversarial, together.adversarial[one], rtol=0, atol=1e-5)
        assert torch.equal(alone.evaluations, together.evaluations[one])


class _Recording(nn.Module):
    """Keeps the images that it is shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images.detach().clone())
        outputs: Tensor = self.network(images)
        return outputs


@_EACH
def test_evaluations_are_counted(attack: _Attack, smooth: nn.Module, images: Tensor, labels: Tensor) -> None:
    recording = _Recording(smooth)
    found = attack(recording, images, labels)
    assert found.evaluations.dtype == torch.int64
    assert int(found.evaluations.sum()) == sum(len(shown) for shown in recording.shown)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_starts_depend_on_the_keys_alone(
    norm: Norm, smooth: nn.Module, images: Tensor, predicted: Tensor
) -> None:
    def shown(keys: Tensor | None, seed: int) -> Tensor:
        recording = _Recording(smooth)
        torch.manual_seed(seed)
        FAB(Threat(norm, 0.5), steps=2, restarts=2, targets=1)(recording, images, predicted, keys=keys)
        return torch.cat(recording.shown)

    keys = torch.arange(12)
    first = shown(keys, seed=1)
    assert torch.equal(shown(keys, seed=2), first)
    assert torch.equal(shown(None, seed=3), first)
    differs = (shown(keys + 100, seed=1) != first).flatten(1).any(1).reshape(-1, 12)
    assert not differs[:6].any()  # The images themselves and the run from them, with the points that it ends at.
    assert differs[6:11].all()  # The run from random points.


@pytest.mark.parametrize(
    ("attack", "classes", "tolerance"),
    [
        *((FAB(Threat(norm, eps), 20, targets=targets), 4, 1e-3) for norm, eps in _BALLS for targets in (0, 9)),
        *((DeepFool(Threat(norm, eps), overshoot=0.02), 4, 0.025) for norm, eps in _BALLS[:2]),
        # Among several classes it stays with the one that was the likeliest, which need not be the nearest.
        (CarliniWagner(Threat("l2", 100.0), 200, 8, lr=0.005, initial_const=0.1), 2, 0.01),
    ],
    ids=repr,
)
def test_on_a_linear_classifier_the_distance_found_is_that_of_the_nearest_boundary(
    attack: _Attack, classes: int, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(classes, 16, generator=generator)
    gray = 0.5 + 0.05 * torch.randn(20, 1, 4, 4, generator=generator)
    linear = nn.Linear(16, classes)
    linear.load_state_dict({"weight": weights, "bias": -0.5 * weights.sum(1)})
    with torch.no_grad():
        logits = linear(gray.flatten(1))
    labels = logits.argmax(1)
    dual = {"linf": 1.0, "l2": 2.0, "l1": math.inf}[attack.threat.norm]
    slopes = torch.linalg.vector_norm(weights[labels][:, None] - weights[None], dual, dim=2)
    gaps = logits.gather(1, labels[:, None]) - logits
    expected = (gaps / slopes).scatter(1, labels[:, None], torch.inf).amin(1)
    found = attack.closest(nn.Sequential(nn.Flatten(), linear), gray, labels).distances
    assert (found >= (1.0 - 1e-4) * expected).all()
    assert (found <= (1.0 + tolerance) * expected + 2e-4).all()


@_EACH
def test_images_that_are_misclassified_to_begin_with_are_shown_once_and_given_back(
    attack: _Attack, smooth: nn.Module, images: Tensor, predicted: Tensor
) -> None:
    labels = predicted.clone()
    labels[:4] = (labels[:4] + 1) % 5
    found, closest = attack(smooth, images, labels), attack.closest(smooth, images, labels)
    assert found.evaluations[:4].tolist() == [1, 1, 1, 1]
    assert (found.evaluations[4:] > 1).all()
    assert torch.equal(found.adversarial[:4], images[:4])
    assert closest.distances[:4].tolist() == [0.0] * 4
    wrong = attack(smooth, images, (predicted + 1) % 5)
    assert torch.equal(wrong.adversarial, images)


@_EACH
def test_the_model_is_left_as_it_was(attack: _Attack, smooth: nn.Module, images: Tensor, labels: Tensor) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), smooth).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator = torch.get_rng_state()
    attack(network, images, labels)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(module.training for module in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


@_EACH
def test_inference_mode_changes_nothing(attack: _Attack, smooth: nn.Module, images: Tensor, predicted: Tensor) -> None:
    expected = attack(smooth, images, predicted).adversarial
    with torch.inference_mode():
        found = attack(smooth, images.clone(), predicted.clone()).adversarial
    assert torch.equal(found, expected)


class _Constant(nn.Module):
    """Is sure of class 0, and has no slope."""

    def forward(self, images: Tensor) -> Tensor:
        return 0.0 * images.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0])


@_EACH
def test_where_there_is_no_slope_nothing_is_found_and_the_image_given_back(attack: _Attack, images: Tensor) -> None:
    labels = torch.zeros(12, dtype=torch.int64)
    closest = attack.closest(_Constant(), images, labels)
    assert closest.distances.isinf().all()
    found = attack(_Constant(), images, labels)
    assert torch.equal(found.adversarial, images)


@_EACH
def test_an_empty_batch_is_attacked_too(attack: JudgingAttack, smooth: nn.Module, images: Tensor) -> None:
    found = attack(smooth, images[:0], torch.zeros(0, dtype=torch.int64))
    assert found.adversarial.shape == (0, 3, 6, 6)
    assert found.evaluations.shape == (0,)


@_EACH
def test_images_outside_the_pixel_range_and_missing_keys_are_refused(
    attack: _Attack, smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    with pytest.raises(InputError, match=r"images: .*\[0, 1\]"):
        attack(smooth, 2.0 * images - 1.0, labels)
    with pytest.raises(InputError, match=r"keys: .*12 images"):
        attack(smooth, images, labels, keys=torch.arange(11))


@_EACH
def test_pixels_barely_outside_their_range_are_brought_back(
    attack: _Attack, smooth: nn.Module, images: Tensor, predicted: Tensor
) -> None:
    found = attack(smooth, 1.0001 * images - 0.00005, predicted)
    assert found.adversarial.min() >= 0.0
    assert found.adversarial.max() <= 1.0


_L2 = Threat("l2", 0.5)


@pytest.mark.parametrize(
    ("attack", "settings", "field"),
    [
        (FAB, {"steps": 0}, "attack.steps"),
        (FAB, {"restarts": 0}, "attack.restarts"),
        (FAB, {"targets": -1}, "attack.targets"),
        (FAB, {"alpha_max": 1.1}, "attack.alpha_max"),
        (FAB, {"eta": 0.9}, "attack.eta"),
        (FAB, {"beta": 1.0}, "attack.beta"),
        (CarliniWagner, {"threat": Threat("linf", 0.1)}, "threat.norm"),
        (CarliniWagner, {"steps": 0}, "attack.steps"),
        (CarliniWagner, {"binary_search_steps": 0}, "attack.binary_search_steps"),
        (CarliniWagner, {"lr": 0.0}, "attack.lr"),
        (CarliniWagner, {"confidence": -1.0}, "attack.confidence"),
        (CarliniWagner, {"initial_const": math.inf}, "attack.initial_const"),
        (DeepFool, {"threat": Threat("l1", 1.0)}, "threat.norm"),
        (DeepFool, {"steps": 0}, "attack.steps"),
        (DeepFool, {"overshoot": math.nan}, "attack.overshoot"),
        (DeepFool, {"candidates": 1}, "attack.candidates"),
    ],
)
def test_settings_out_of_range_are_refused(attack: type, settings: dict[str, object], field: str) -> None:
    with pytest.raises(InputError, match=rf"^{field}: "):
        attack(**({"threat": _L2} | settings))
