"""Gradients of which components are NaN or infinite, and loops that end: no attack is spoiled, and none looks away."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distsens.attacks import APGD, FAB, CarliniWagner, DeepFool, JudgingAttack, Square, Threat, attack_named
from distsens.attacks.attack import GradientAttack
from distsens.attacks.image_gradients import finite, image_gradients
from distsens.evaluation import Adaptive, LastIterate, Pool

_BALLS = {"linf": Threat("linf", 0.2), "l2": Threat("l2", 0.5), "l1": Threat("l1", 1.0)}
_STEPPING: dict[str, Callable[[Threat, int], GradientAttack]] = {
    "fgsm": lambda threat, _: attack_named("fgsm", threat),
    "bim": lambda threat, steps: attack_named("bim", threat, steps=steps),
    "mim": lambda threat, steps: attack_named("mim", threat, steps=steps),
    "mim-growing": lambda threat, steps: attack_named("mim", threat, steps=steps, momentum=1e20),
    "pgd": lambda threat, steps: attack_named("pgd", threat, steps=steps, random_start="none"),
    "pgd-random": lambda threat, steps: attack_named("pgd", threat, steps=steps, restarts=2),
    "pgd-margin": lambda threat, steps: attack_named("cw_pgd", threat, steps=steps),
}
_JUDGING: dict[str, Callable[[Threat, int], JudgingAttack]] = {
    **{name: lambda threat, steps, build=build: LastIterate(build(threat, steps)) for name, build in _STEPPING.items()},
    "apgd-ce": lambda threat, steps: APGD(threat, steps=steps),
    "apgd-eot": lambda threat, steps: APGD(threat, steps=steps, eot=2),
    "apgd-dlr": lambda threat, steps: APGD(threat, "dlr", steps=steps),
    "apgd-t": lambda threat, steps: APGD(threat, "dlr", steps=steps, targets=2),
    "fab": lambda threat, steps: FAB(threat, steps=steps, targets=0),
    "fab-t": lambda threat, steps: FAB(threat, steps=steps, targets=2, restarts=2),
    "square": lambda threat, steps: Square(threat, queries=steps),
    "adaptive": lambda threat, steps: Adaptive(threat, _POOL, steps=steps, layers=("*last",)),
}
_ONLY: dict[str, Callable[[Threat, int], JudgingAttack]] = {
    "cw": lambda threat, steps: CarliniWagner(threat, steps=steps, binary_search_steps=1, lr=0.5, initial_const=100.0),
    "deepfool": lambda threat, steps: DeepFool(threat, steps=steps),
}
_ALL = [
    *((name, norm, build) for name, build in _JUDGING.items() for norm in _BALLS),
    ("cw", "l2", _ONLY["cw"]),
    ("deepfool", "l2", _ONLY["deepfool"]),
    ("deepfool", "linf", _ONLY["deepfool"]),
]
_POOL = Pool(torch.rand(6, 1, 3, 3, generator=torch.Generator().manual_seed(4)), torch.arange(6) % 4)


def _id(value: object) -> str:
    return value if isinstance(value, str) else ""


_each = pytest.mark.parametrize(("name", "norm", "build"), _ALL, ids=_id)


class _Linear(nn.Module):
    """Four classes by the pixels' square roots; at black pixels with a slope that is infinite, or left out."""

    def __init__(self, *, left_out: bool = False) -> None:
        super().__init__()
        self.left_out = left_out
        self.last = nn.Linear(9, 4)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            self.last.weight.copy_(torch.randn(4, 9, generator=generator))
            self.last.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        if self.left_out:
            black = pixels == 0.0
            pixels = torch.where(black, 0.0, torch.where(black, 1.0, pixels).sqrt())
        else:
            pixels = pixels.sqrt()
        outputs: Tensor = self.last(pixels)
        return outputs


def _batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Images of which the first three have black pixels, and one is black, and what the model takes them for."""
    images = torch.rand(5, 1, 3, 3, generator=torch.Generator().manual_seed(6))
    images[0, 0, 0, 0] = images[1, 0, :, 1] = images[2] = 0.0
    with torch.no_grad():
        return images, model(images).argmax(1)


def _assert_inside(threat: Threat, examples: Tensor, images: Tensor) -> None:
    assert examples.isfinite().all()
    assert (threat.distance(images.double(), examples.double()) <= threat.eps + 1e-6).all()
    assert examples.min() >= 0.0
    assert examples.max() <= 1.0


@_each
def test_an_infinite_slope_at_black_pixels_counts_as_none(
    name: str, norm: str, build: Callable[[Threat, int], JudgingAttack]
) -> None:
    threat, (images, labels) = _BALLS[norm], _batch(_Linear())
    attack = build(threat, 4)
    found = attack(_Linear(), images, labels)
    _assert_inside(threat, found.adversarial, images)
    expected = attack(_Linear(left_out=True), images, labels)
    torch.testing.assert_close(found.adversarial, expected.adversarial)
    assert torch.equal(found.evaluations, expected.evaluations)
    if name not in ("fgsm", "square"):
        assert (found.adversarial != images).flatten(1).any(1)[[0, 1, 3, 4]].all(), "all but the black image move"


class _Spoilt(torch.autograd.Function):
    """The images, whose gradient is multiplied by a factor for each component."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, images: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(factors)
        return images.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        (factors,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0] * factors, None


class _SpoiltModel(nn.Module):
    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.factors = factors
        self.network = _Linear(left_out=True)

    def forward(self, images: Tensor) -> Tensor:
        spoilt: Tensor = _Spoilt.apply(images, self.factors)
        outputs: Tensor = self.network(spoilt)
        return outputs


_FACTORS = st.lists(
    st.sampled_from([1.0, 0.0, math.nan, math.inf, -math.inf, 3e38, -1e30, 1e-38]), min_size=9, max_size=9
)


@_each
@settings(max_examples=5)
@given(factors=_FACTORS)
def test_whatever_the_gradient_is_examples_are_numbers_in_the_ball_and_in_the_pixel_range(
    name: str, norm: str, build: Callable[[Threat, int], JudgingAttack], factors: list[float]
) -> None:
    model, threat = _SpoiltModel(torch.tensor(factors).view(1, 3, 3)), _BALLS[norm]
    images, labels = _batch(model)
    _assert_inside(threat, build(threat, 3)(model, images, labels).adversarial, images)


@_each
def test_an_image_whose_gradient_is_nan_everywhere_stays_where_it_is(
    name: str, norm: str, build: Callable[[Threat, int], JudgingAttack]
) -> None:
    model = _SpoiltModel(torch.full((1, 3, 3), math.nan))
    images, labels = _batch(model)
    if name in _STEPPING and "random" not in name and "margin" not in name:
        assert torch.equal(_STEPPING[name](_BALLS[norm], 3)(model, images, labels), images)
    found = build(_BALLS[norm], 3)(model, images, labels).adversarial
    _assert_inside(_BALLS[norm], found, images)
    if name in ("deepfool", "cw"):
        torch.testing.assert_close(found, images)


class _Binary(nn.Module):
    """Two classes by the mean brightness: grey images are of the first, and lighter ones of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(9, 4)
        with torch.no_grad():
            self.last.weight.copy_(torch.tensor([[-1.0], [1.0], [0.0], [0.0]]).expand(4, 9))
            self.last.bias.copy_(torch.tensor([4.51, -4.51, -9.0, -9.0]))

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.last(images.flatten(1))
        return outputs


@pytest.mark.parametrize(("name", "norm", "build"), [each for each in _ALL if each[0] != "square"], ids=_id)
def test_where_one_step_is_enough_one_step_is_looked_at(
    name: str,
    norm: str,
    build: Callable[[Threat, int], JudgingAttack],
) -> None:
    model, images = _Binary(), torch.full((3, 1, 3, 3), 0.5)
    labels = torch.zeros(3, dtype=torch.int64)
    assert (model(images).argmax(1) == labels).all()
    found = build(_BALLS[norm], 1)(model, images, labels)
    assert (model(found.adversarial).argmax(1) == 1).all()


def test_carlini_and_wagner_look_at_each_iterate_the_last_included() -> None:
    shown: list[Tensor] = []

    class Recording(_Linear):
        def forward(self, images: Tensor) -> Tensor:
            shown.append(images.detach().clone())
            return super().forward(images)

    images, labels = torch.full((1, 1, 3, 3), 0.5), None
    labels = _Linear()(images).argmax(1)
    attack = CarliniWagner(_BALLS["l2"], steps=3, binary_search_steps=1, lr=1e-4)
    found = attack(Recording(), images, labels)
    assert found.evaluations.tolist() == [1 + 3 + 1]
    iterates = shown[-4:]
    assert torch.allclose(iterates[0], images, atol=1e-6)
    assert all(not torch.equal(one, other) for one, other in pairwise(iterates))


@given(st.lists(st.floats(width=32), min_size=1, max_size=6))
def test_components_that_are_not_finite_are_zero_and_the_others_what_they_are_up_to_1e15(values: list[float]) -> None:
    expected = [min(max(value, -1e15), 1e15) if math.isfinite(value) else 0.0 for value in values]
    given_gradient = torch.tensor(values)
    assert torch.equal(finite(given_gradient), torch.tensor(expected))
    assert torch.equal(given_gradient, torch.tensor(values)) or given_gradient.isnan().any()


def test_the_gradient_of_one_image_spoils_no_other() -> None:
    points = torch.tensor([[[[0.0]]], [[[0.25]]], [[[1.0]]]], requires_grad=True)
    assert image_gradients(points.sqrt().flatten(), points).flatten().tolist() == [0.0, 1.0, 0.5]
