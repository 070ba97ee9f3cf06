from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from distsens.attacks import Norm, Threat
from distsens.attacks.hyperplane import move_to_hyperplane, nearest_boundary

_PIXELS = 6
_NORMS = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
_ORDER: dict[Norm, float] = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
_POINTS = hnp.arrays(np.float64, _PIXELS, elements=st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.0, 1.0])))
# Multiples of 1/8, so that a general solver is not at the end of its precision.
_NORMALS = hnp.arrays(np.float64, _PIXELS, elements=st.integers(-24, 24).map(lambda i: i / 8))
_VALUES = st.floats(-8.0, 8.0)


def _move(norm: Norm, points: np.ndarray, normals: np.ndarray, value: float) -> np.ndarray:
    rows = (torch.from_numpy(np.atleast_2d(array)) for array in (points, normals))
    return move_to_hyperplane(*rows, torch.tensor([value], dtype=torch.float64), norm).numpy()[0]


def _reached(points: np.ndarray, normals: np.ndarray, value: float) -> bool:
    """Whether the hyperplane has points in [0, 1], and clearly so."""
    ends = [value + np.minimum(normals * -points, normals * (1.0 - points)).sum()]
    ends.append(value + np.maximum(normals * -points, normals * (1.0 - points)).sum())
    return bool(ends[0] < -1e-6 and ends[1] > 1e-6)


def _solved(norm: Norm, points: np.ndarray, normals: np.ndarray, value: float) -> float:
    """Length of the shortest move by a general solver: linear programs for Linf and L1."""
    room = list(zip(-points, 1.0 - points, strict=True))
    if norm == "l2":
        solved = minimize(
            lambda m: (m**2).sum(),
            np.zeros(_PIXELS),
            jac=lambda m: 2.0 * m,
            bounds=room,
            constraints={"type": "eq", "fun": lambda m: value + normals @ m},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 300},
        )
        return math.sqrt(solved.fun) if solved.success else math.nan
    # Bounds t on |m_i|: one for all in Linf, one for each in L1, whose sum is the length.
    bounds = 1 if norm == "linf" else _PIXELS
    each = np.ones((_PIXELS, 1)) if norm == "linf" else np.eye(_PIXELS)
    one = np.eye(_PIXELS)
    solved = linprog(
        np.r_[np.zeros(_PIXELS), np.ones(bounds)],
        A_ub=np.block([[one, -each], [-one, -each]]),
        b_ub=np.zeros(2 * _PIXELS),
        A_eq=np.r_[normals, np.zeros(bounds)][None],
        b_eq=[-value],
        bounds=[*room, *[(0.0, None)] * bounds],
    )
    return float(solved.fun) if solved.success else math.nan


@_NORMS
@settings(max_examples=60)
@given(points=_POINTS, normals=_NORMALS, value=_VALUES)
def test_the_move_ends_on_the_hyperplane_inside_the_pixel_range_and_no_solver_finds_a_shorter_one(
    norm: Norm, points: np.ndarray, normals: np.ndarray, value: float
) -> None:
    move = _move(norm, points, normals, value)
    assert (points + move >= -1e-12).all()
    assert (points + move <= 1.0 + 1e-12).all()
    if _reached(points, normals, value):
        assert value + normals @ move == pytest.approx(0.0, abs=1e-9)
        solved = _solved(norm, points, normals, value)
        if not math.isnan(solved):
            assert np.linalg.norm(move, _ORDER[norm]) == pytest.approx(solved, abs=1e-5)


@_NORMS
@settings(max_examples=60)
@given(points=_POINTS, normals=_NORMALS, sign=st.sampled_from([-1.0, 1.0]))
def test_towards_a_hyperplane_outside_the_pixel_range_the_move_goes_as_far_as_it_can(
    norm: Norm, points: np.ndarray, normals: np.ndarray, sign: float
) -> None:
    move = _move(norm, points, normals, sign * 1000.0)
    farthest = np.where(sign * normals > 0.0, -points, np.where(normals == 0.0, 0.0, 1.0 - points))
    np.testing.assert_allclose(move, farthest, atol=1e-12)


@_NORMS
def test_the_size_of_the_normal_does_not_matter(norm: Norm) -> None:
    generator = torch.Generator().manual_seed(0)
    points, normals = torch.rand(4, 9, generator=generator), torch.randn(4, 9, generator=generator)
    values = torch.tensor([0.3, -0.3, 1.0, 0.0])
    expected = move_to_hyperplane(points, normals, values, norm)
    torch.testing.assert_close(move_to_hyperplane(points, 1e-30 * normals, 1e-30 * values, norm), expected)
    assert not expected[3].any()


@_NORMS
def test_without_a_slope_nothing_moves(norm: Norm) -> None:
    assert not move_to_hyperplane(torch.rand(2, 9), torch.zeros(2, 9), torch.ones(2), norm).any()


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0), ("l1", math.inf)])
def test_the_nearest_boundary_is_that_of_least_value_over_the_dual_norm_of_its_slope(
    norm: Norm, dual: float, smooth: nn.Module, images: Tensor, labels: Tensor
) -> None:
    others = torch.stack([torch.tensor([k for k in range(5) if k != label]) for label in labels])
    points = images.requires_grad_()
    value, slope, distance = nearest_boundary(smooth(points), points, labels, others, norm)
    for row in range(len(images)):
        one = images[row : row + 1].detach().requires_grad_()
        logits = smooth(one)[0]
        boundaries = []
        for k in others[row]:
            gap = logits[k] - logits[labels[row]]
            (gradient,) = torch.autograd.grad(gap, one, retain_graph=True)
            boundaries.append((float(gap.detach().abs() / gradient.norm(dual)), float(gap.detach()), gradient[0]))
        expected = min(boundaries, key=lambda boundary: boundary[0])
        assert float(distance[row]) == pytest.approx(expected[0], rel=1e-4)
        assert float(value[row]) == pytest.approx(expected[1], abs=1e-6)
        torch.testing.assert_close(slope[row], expected[2], rtol=1e-4, atol=1e-7)


@_NORMS
def test_the_move_from_inside_is_as_long_as_the_distance(norm: Norm) -> None:
    normals, middle = torch.randn(3, 9, generator=torch.Generator().manual_seed(1)), torch.full((3, 9), 0.5)
    move = move_to_hyperplane(middle, normals, torch.tensor([0.1, -0.1, 0.05]), norm)
    dual = {"linf": 1.0, "l2": 2.0, "l1": math.inf}[norm]
    expected = torch.tensor([0.1, 0.1, 0.05]) / torch.linalg.vector_norm(normals, dual, dim=1)
    torch.testing.assert_close(Threat(norm, 1.0).distance(middle, middle + move), expected)
