from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from torch import Tensor

from distsens.attacks import Norm, RandomStart, Threat
from distsens.errors import InputError
from distsens.randomness import sample_keys

_NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
_ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
_STARTS: tuple[RandomStart, ...] = ("uniform", "normal", "none")
_ROUNDING = 1e-5
_SIGNIFICANCE = 1e-3

Nearest = Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]


def _tensors(low: float, high: float) -> st.SearchStrategy[Tensor]:
    elements = st.floats(low, high, width=32)
    return hnp.arrays(np.float32, (2, 1, 2, 3), elements=elements).map(torch.from_numpy)


_THREATS = st.builds(Threat, norm=st.sampled_from(_NORMS), eps=st.floats(0.0, 1.0, width=32))
_IMAGES = _tensors(0.0, 1.0)
_POINTS = _tensors(-3.0, 4.0)


@given(_THREATS, _IMAGES, _POINTS)
def test_a_projected_point_lies_in_the_ball_and_is_an_image(threat: Threat, images: Tensor, points: Tensor) -> None:
    projected = threat.project(points, images)
    assert (threat.distance(images, projected) <= threat.eps + _ROUNDING).all()
    assert projected.min() >= 0.0
    assert projected.max() <= 1.0


@given(_THREATS, _IMAGES, _POINTS)
def test_projecting_twice_is_projecting_once(threat: Threat, images: Tensor, points: Tensor) -> None:
    once = threat.project(points, images)
    torch.testing.assert_close(threat.project(once, images), once, rtol=0, atol=_ROUNDING)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(threat=_THREATS, images=_IMAGES, points=_POINTS)
def test_projection_is_the_nearest_point_of_ball_and_box(
    threat: Threat, images: Tensor, points: Tensor, nearest: Nearest
) -> None:
    expected = []
    for image, point in zip(images.double().numpy(), points.double().numpy(), strict=True):
        if threat.norm == "linf":
            expected.append(np.clip(image + np.clip(point - image, -threat.eps, threat.eps), 0.0, 1.0))
        else:
            reach = np.where(point > image, 1.0 - image, image).ravel()
            offsets = nearest((point - image).ravel(), reach, threat.eps, _ORDER[threat.norm])
            expected.append(image + offsets.reshape(image.shape))
    projected = threat.project(points, images).double()
    torch.testing.assert_close(projected, torch.from_numpy(np.stack(expected)), rtol=0, atol=_ROUNDING)


@pytest.mark.parametrize("norm", _NORMS)
@settings(max_examples=50)
@given(x=st.floats(-2.0, 2.0), y=st.floats(-2.0, 2.0))
def test_no_point_of_ball_and_box_is_nearer_than_the_projected_one(norm: Norm, x: float, y: float) -> None:
    eps, image = 0.25, torch.tensor([0.1, 0.95])  # Near the borders of [0, 1], which cut the ball.
    first, second = (torch.linspace(max(c - eps, 0.0), min(c + eps, 1.0), 201) for c in image.tolist())
    candidates = torch.cartesian_prod(first, second)
    inside = torch.linalg.vector_norm(candidates - image, ord=_ORDER[norm], dim=1) <= eps + 1e-6
    point = torch.tensor([x, y])
    nearest = (candidates[inside] - point).norm(dim=1).min()
    projected = Threat(norm, eps).project(point.reshape(1, 1, 1, 2), image.reshape(1, 1, 1, 2))
    distance = (projected.reshape(2) - point).norm()
    spacing = 2 * eps / 200
    assert distance <= nearest + _ROUNDING
    assert distance >= nearest - 2 * spacing


@given(_THREATS, _IMAGES, _IMAGES)
def test_distance_is_the_norm_of_the_difference_of_each_image(threat: Threat, images: Tensor, others: Tensor) -> None:
    difference = (others - images).double().numpy().reshape(2, -1)
    expected = np.linalg.norm(difference, ord=_ORDER[threat.norm], axis=1)
    torch.testing.assert_close(threat.distance(images, others).double(), torch.from_numpy(expected))


@given(
    st.sampled_from(_NORMS),
    _tensors(-1.0, 1.0).filter(lambda g: bool((g.flatten(1).abs().amax(1) > 1e-3).all())),
    st.integers(-25, 15),
    st.floats(1e-3, 1.0),
)
def test_a_step_has_its_length_and_is_the_steepest_at_any_scale_of_the_gradient(
    norm: Norm, gradients: Tensor, exponent: int, step_size: float
) -> None:
    gradients = gradients * 10.0**exponent
    grey = torch.full_like(gradients, 0.5)
    # In L1 a hundredth of six pixels is one: the step that is the steepest.
    step = (Threat(norm, 1.0).ascend(grey, gradients, step_size) - grey).double().flatten(1)
    flat = gradients.double().flatten(1)
    length = torch.linalg.vector_norm(step, ord=_ORDER[norm], dim=1)
    torch.testing.assert_close(length, torch.full((2,), step_size, dtype=torch.float64), rtol=1e-5, atol=_ROUNDING)
    # Hölder: no step of this length climbs more than step_size times the dual norm of the gradient.
    dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    steepest = step_size * torch.linalg.vector_norm(flat, ord=dual, dim=1)
    largest = flat.abs().amax().item()
    torch.testing.assert_close((step * flat).sum(1), steepest, rtol=1e-5, atol=_ROUNDING * largest)


def test_a_step_in_l1_is_shared_by_the_largest_gradients_that_can_still_move() -> None:
    points = torch.tensor([[0.5, 1.0, 0.0, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5]])
    gradients = torch.tensor([[1.0, 9.0, -8.0, -5.0, 4.0, 3.0, 2.0, -1.0, 0.5, 0.1]])
    moved = Threat("l1", 3.0).ascend(points, gradients, 0.6, l1_fraction=0.3) - points
    torch.testing.assert_close(moved, 0.2 * torch.tensor([[0.0, 0, 0, -1, 1, 1, 0, 0, 0, 0]]))
    # A step of length 2.5 needs three coordinates or more.
    moved = Threat("l1", 3.0).ascend(points, gradients, 2.5, l1_fraction=0.1) - points
    torch.testing.assert_close(moved, 2.5 / 3 * torch.tensor([[0.0, 0, 0, -1, 1, 1, 0, 0, 0, 0]]))


def test_a_step_in_l1_keeps_its_length_where_few_can_move() -> None:
    points, gradients = torch.tensor([[1.0, 1.0, 0.5]]), torch.tensor([[1.0, 1.0, 1e-3]])
    moved = Threat("l1", 3.0).ascend(points, gradients, 0.4, l1_fraction=1.0) - points
    torch.testing.assert_close(moved, torch.tensor([[0.0, 0.0, 0.4]]))


@pytest.mark.parametrize("norm", _NORMS)
def test_without_a_gradient_there_is_no_step(norm: Norm, images: Tensor) -> None:
    assert torch.equal(Threat(norm, 0.5).ascend(images, torch.zeros_like(images), 0.1), images)


@pytest.mark.parametrize("how", _STARTS)
@given(threat=_THREATS, images=_IMAGES, keys=st.lists(st.integers(0, 2**60), min_size=2, max_size=2))
def test_a_start_lies_in_the_ball_and_is_an_image(
    how: RandomStart, threat: Threat, images: Tensor, keys: list[int]
) -> None:
    start = threat.start(images, torch.tensor(keys), how)
    assert (threat.distance(images, start) <= threat.eps + _ROUNDING).all()
    assert start.min() >= 0.0
    assert start.max() <= 1.0


@pytest.mark.parametrize("norm", _NORMS)
@pytest.mark.parametrize("how", _STARTS)
def test_the_start_of_an_image_depends_on_its_key_alone(norm: Norm, how: RandomStart, images: Tensor) -> None:
    threat, keys = Threat(norm, 0.5), sample_keys(torch.arange(12), 3)
    start = threat.start(images, keys, how)
    torch.manual_seed(99)
    torch.testing.assert_close(threat.start(images[4:7], keys[4:7], how), start[4:7], rtol=0, atol=0)
    other = threat.start(images, sample_keys(torch.arange(12), 4), how)
    assert (threat.distance(other, start) > 0).all() == (how != "none")


@pytest.mark.parametrize("norm", _NORMS)
@pytest.mark.parametrize("how", _STARTS)
def test_a_ball_without_radius_starts_at_the_image(norm: Norm, how: RandomStart, images: Tensor) -> None:
    assert torch.equal(Threat(norm, 0.0).start(images, torch.arange(12), how), images)


def _offsets(threat: Threat, how: RandomStart, shape: tuple[int, int, int]) -> Tensor:
    """Starts of 4,000 grey images, far from the borders of [0, 1], minus the images: (4000, pixels)."""
    images = torch.full((4_000, *shape), 0.5)
    return (threat.start(images, sample_keys(torch.arange(4_000), 0), how) - images).double().flatten(1)


def test_the_uniform_linf_start_is_uniform_between_minus_and_plus_eps() -> None:
    offsets = _offsets(Threat("linf", 0.25), "uniform", (1, 2, 3))
    assert stats.kstest(offsets.flatten().numpy(), stats.uniform(-0.25, 0.5).cdf).pvalue > _SIGNIFICANCE


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 3), (3, 4, 4)])
def test_the_uniform_l2_start_is_uniform_in_the_ball(shape: tuple[int, int, int]) -> None:
    offsets, dimension = _offsets(Threat("l2", 0.25), "uniform", shape), math.prod(shape)
    radius = offsets.norm(dim=1) / 0.25
    assert stats.kstest((radius**dimension).numpy(), "uniform").pvalue > _SIGNIFICANCE
    assert radius.mean().item() == pytest.approx(dimension / (dimension + 1), abs=0.02)
    directions = offsets / offsets.norm(dim=1, keepdim=True)
    covariance = directions.T @ directions / len(directions)
    torch.testing.assert_close(covariance, torch.eye(dimension).double() / dimension, rtol=0, atol=0.03)
    torch.testing.assert_close(directions.mean(0), torch.zeros(dimension).double(), rtol=0, atol=0.05)
    for other in (directions[:, 0], directions[:, 0].abs()):
        correlation = np.corrcoef(radius.numpy(), other.numpy())[0, 1]
        assert abs(correlation) < 4 / math.sqrt(len(directions)), "the radius depends on the direction"


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 3), (3, 4, 4)])
def test_the_uniform_l1_start_is_uniform_in_the_ball(shape: tuple[int, int, int]) -> None:
    offsets, dimension = _offsets(Threat("l1", 0.25), "uniform", shape) / 0.25, math.prod(shape)
    radius = offsets.abs().sum(1)
    assert stats.kstest((radius**dimension).numpy(), "uniform").pvalue > _SIGNIFICANCE
    # On the sphere, and so in the ball, a coordinate's share of the norm is Beta(1, D - 1), with either sign.
    shares = offsets / radius[:, None]
    for pixel in (0, dimension - 1):
        assert stats.kstest(shares[:, pixel].abs().numpy(), stats.beta(1, dimension - 1).cdf).pvalue > _SIGNIFICANCE
    assert (offsets > 0).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert abs(np.corrcoef(radius.numpy(), shares[:, 0].abs().numpy())[0, 1]) < 4 / math.sqrt(len(shares))
    signs = offsets.sign()
    torch.testing.assert_close(signs.T @ signs / len(signs), torch.eye(dimension).double(), rtol=0, atol=0.08)


@pytest.mark.parametrize("norm", _NORMS)
def test_the_normal_start_is_a_thousandth_of_a_standard_normal(norm: Norm) -> None:
    offsets = _offsets(Threat(norm, 0.25), "normal", (1, 2, 3))
    assert stats.kstest(1000.0 * offsets.flatten().numpy(), "norm").pvalue > _SIGNIFICANCE


def test_no_random_start_is_the_image(images: Tensor) -> None:
    assert torch.equal(Threat("linf", 0.1).start(images, torch.arange(12), "none"), images)


@pytest.mark.parametrize("norm", _NORMS)
def test_a_scaled_threat_has_the_scaled_radius(norm: Norm) -> None:
    assert Threat(norm, 0.5).scaled(0.5) == Threat(norm, 0.25)
    assert Threat(norm, 0.5).scaled(0.0) == Threat(norm, 0.0)


def test_a_threat_travels_between_processes() -> None:
    assert pickle.loads(pickle.dumps(Threat("l2", 0.5))) == Threat("l2", 0.5)


@pytest.mark.parametrize("norm", ["l3", "Linf", "", 2])
def test_an_unknown_norm_is_refused(norm: Norm) -> None:
    with pytest.raises(InputError, match=r"threat\.norm: .*\"linf\", \"l2\" and \"l1\"") as caught:
        Threat(norm, 0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("norm", _NORMS)
@pytest.mark.parametrize("eps", [-1e-9, -8.0, math.nan, math.inf, -math.inf])
def test_an_eps_that_is_no_radius_is_refused(norm: Norm, eps: float) -> None:
    with pytest.raises(InputError, match=r"threat\.eps"):
        Threat(norm, eps)


def test_a_linf_eps_in_units_of_255_is_refused_with_a_hint() -> None:
    with pytest.raises(InputError, match=r"threat\.eps: got 8; .*8/255, not 8"):
        Threat("linf", 8)
    assert Threat("l2", 8).eps == Threat("l1", 8).eps == 8


def test_an_unknown_random_start_is_refused(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"attack\.random_start: got 'gaussian'"):
        Threat("l2", 0.5).start(images, torch.arange(12), "gaussian")  # type: ignore[arg-type]
