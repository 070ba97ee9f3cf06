from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize

from distsens.attacks import project_l1, project_l2

_PROJECTIONS = {1: project_l1, 2: project_l2}
_ORDERS = pytest.mark.parametrize("order", [1, 2])
_PIXELS = 6
_OFFSETS = hnp.arrays(np.float64, _PIXELS, elements=st.floats(-3.0, 3.0))
_REACH = hnp.arrays(np.float64, _PIXELS, elements=st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.0, 1.0])))
_EPS = st.one_of(st.just(0.0), st.floats(1e-3, 5.0))

Nearest = Callable[[np.ndarray, np.ndarray, float, int], np.ndarray]


def _project(order: int, offsets: np.ndarray, reach: np.ndarray, eps: float) -> np.ndarray:
    rows = torch.from_numpy(np.atleast_2d(offsets)), torch.from_numpy(np.atleast_2d(reach))
    return _PROJECTIONS[order](*rows, eps).numpy().reshape(offsets.shape)


@_ORDERS
@settings(max_examples=60)
@given(_OFFSETS, _REACH, st.floats(0.01, 5.0))
def test_a_general_solver_finds_no_nearer_point(order: int, offsets: np.ndarray, reach: np.ndarray, eps: float) -> None:
    lengths = np.abs(offsets)
    solved = minimize(
        lambda x: ((x - lengths) ** 2).sum(),
        np.zeros(_PIXELS),
        jac=lambda x: 2.0 * (x - lengths),
        bounds=[(0.0, bound) for bound in reach],
        constraints={"type": "ineq", "fun": lambda x: eps**order - (x**order).sum()},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 300},
    )
    assume(solved.success)
    feasible = np.minimum(solved.x, reach).clip(0.0)
    feasible *= min(1.0, eps / max(np.linalg.norm(feasible, order), 1e-300))
    found = _project(order, offsets, reach, eps)
    assert ((found - offsets) ** 2).sum() <= ((feasible - lengths) ** 2).sum() + 1e-12
    np.testing.assert_allclose(np.abs(found), solved.x, atol=1e-3)


@_ORDERS
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offsets=_OFFSETS, reach=_REACH, eps=_EPS)
def test_the_multiplier_found_by_bisection_gives_the_same_point(
    order: int, offsets: np.ndarray, reach: np.ndarray, eps: float, nearest: Nearest
) -> None:
    found = _project(order, offsets, reach, eps)
    np.testing.assert_allclose(found, nearest(offsets, reach, eps, order), atol=1e-9)
    assert np.linalg.norm(found, order) <= eps + 1e-12
    assert (np.abs(found) <= reach).all()


@_ORDERS
@given(_OFFSETS, _REACH)
def test_a_point_in_ball_and_box_stays(order: int, offsets: np.ndarray, reach: np.ndarray) -> None:
    offsets = np.clip(offsets, -reach, reach)
    found = _project(order, offsets, reach, 1.000001 * float(np.linalg.norm(offsets, order)))
    np.testing.assert_allclose(found, offsets, atol=1e-12)


@given(_OFFSETS, _EPS)
def test_without_bounds_l2_is_a_scaling_and_l1_the_projection_of_duchi(offsets: np.ndarray, eps: float) -> None:
    free = np.full(_PIXELS, np.inf)
    length = np.linalg.norm(offsets)
    expected = offsets * min(1.0, eps / length) if length > 0 else offsets
    np.testing.assert_allclose(_project(2, offsets, free, eps), expected, atol=1e-9)

    lengths = np.abs(offsets)
    if lengths.sum() > eps:
        descending = np.sort(lengths)[::-1]
        thresholds = (np.cumsum(descending) - eps) / np.arange(1, _PIXELS + 1)
        # At least the largest coordinate remains, if eps is above 0.
        lengths = np.maximum(lengths - thresholds[max(np.count_nonzero(descending > thresholds), 1) - 1], 0.0)
    np.testing.assert_allclose(_project(1, offsets, free, eps), np.copysign(lengths, offsets), atol=1e-9)


@_ORDERS
def test_rows_do_not_influence_one_another(order: int, nearest: Nearest) -> None:
    numbers = np.random.default_rng(0)
    offsets, reach = numbers.normal(size=(40, 30)), numbers.random((40, 30))
    offsets[::3] *= 1e-3
    together = _project(order, offsets, reach, 0.7)
    for row in range(40):
        np.testing.assert_allclose(together[row], nearest(offsets[row], reach[row], 0.7, order), atol=1e-9)


@_ORDERS
def test_in_float32_a_large_image_is_inside_ball_and_box(order: int) -> None:
    torch.manual_seed(0)
    offsets, reach = torch.randn(4, 3 * 64 * 64), torch.rand(4, 3 * 64 * 64)
    eps = {1: 40.0, 2: 5.0}[order]
    found = _PROJECTIONS[order](offsets, reach, eps)
    assert found.dtype == torch.float32
    norms = torch.linalg.vector_norm(found.double(), ord=order, dim=1)
    torch.testing.assert_close(norms, torch.full((4,), eps, dtype=torch.float64), rtol=1e-6, atol=0)
    assert (found.abs() <= reach).all()


@_ORDERS
def test_numbers_that_are_none_do_not_hang(order: int) -> None:
    offsets = torch.tensor([[math.nan, 1.0], [3.0, 4.0]])
    found = _PROJECTIONS[order](offsets, torch.full((2, 2), math.inf), 1.0)
    assert found[0].isnan().any()
    assert found[1].isfinite().all()


def test_in_l1_the_rounding_of_the_threshold_does_not_add_up_over_the_coordinates() -> None:
    offsets = 1.0 - 1e-3 * torch.rand(3, 100_000, generator=torch.Generator().manual_seed(1))
    found = project_l1(offsets, torch.ones_like(offsets), 20.0)
    assert (found.double().sum(1) / 20.0 - 1.0).abs().max() <= 1e-7
