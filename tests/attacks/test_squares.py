from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distsens.attacks import Norm, Square, Threat
from distsens.attacks.squares import changed_points, first_points, tiles

_THREATS = [Threat("linf", 0.1), Threat("l2", 1.3), Threat("l1", 4.0)]
_threats = pytest.mark.parametrize("threat", _THREATS, ids=lambda threat: threat.norm)
_SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 11))


def _images(shape: tuple[int, int, int]) -> Tensor:
    pixels = torch.rand(5, *shape, generator=torch.Generator().manual_seed(3))
    return (1.5 * pixels - 0.25).clamp(0.0, 1.0)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 10])
@pytest.mark.parametrize("order", [1.0, 2.0])
def test_a_tile_is_the_papers_sum_in_two_halves_of_opposite_sign_and_of_norm_one(side: int, order: float) -> None:
    n = side // 2
    expected = torch.zeros(side, side, dtype=torch.float64)
    for first, width, sign in ((0, n, 1.0), (n, side - n, -1.0)):
        for r in range(1, side + 1):
            for s in range(1, width + 1):
                last = n - max(abs(r - n - 1), abs(s - width // 2 - 1))
                total = sum(1.0 / (n + 1 - k) ** 2 for k in range(last + 1))
                expected[r - 1, first + s - 1] = sign * total
    expected /= expected.abs().pow(order).sum() ** (1.0 / order)
    torch.testing.assert_close(tiles(side, order), torch.stack([expected, expected.T]))


@settings(max_examples=60)
@given(st.sampled_from(_THREATS), _SHAPES, st.floats(1e-4, 1.0))
def test_points_of_any_shape_stay_in_ball_and_pixel_range(
    threat: Threat, shape: tuple[int, int, int], part: float
) -> None:
    images, keys = _images(shape), torch.arange(5)
    points = first_points(threat, images, keys)
    for change in range(3):
        assert (threat.distance(images, points) <= threat.eps + 1e-6).all()
        assert points.min() >= 0.0
        assert points.max() <= 1.0
        assert points.dtype == torch.float32
        points = changed_points(threat, points, images, keys + 10 * change, part)


def test_in_linf_the_first_points_are_stripes_of_plus_and_minus_eps() -> None:
    grey = torch.full((5, 3, 8, 8), 0.5)
    offsets = first_points(Threat("linf", 0.1), grey, torch.arange(5)) - grey
    torch.testing.assert_close(offsets.abs(), torch.full_like(grey, 0.1))
    assert (offsets == offsets[:, :, :1]).all()
    assert 0.3 < (offsets > 0).double().mean() < 0.7


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_in_l2_and_l1_all_of_eps_is_spent_at_first_and_after_each_change(norm: Norm) -> None:
    threat, grey = Threat(norm, 0.9), torch.full((5, 3, 9, 9), 0.5)
    points = first_points(threat, grey, torch.arange(5))
    for change in range(8):
        torch.testing.assert_close(threat.distance(grey, points), torch.full((5,), 0.9))
        points = changed_points(threat, points, grey, torch.arange(5) + 10 * change, 0.2)


@_threats
@pytest.mark.parametrize("part", [0.05, 0.3])
def test_a_change_touches_one_square_and_in_l2_and_l1_a_second_that_becomes_zero(threat: Threat, part: float) -> None:
    images = _images((2, 13, 13))
    points = first_points(threat, images, torch.arange(5))
    changed = changed_points(threat, points, images, torch.arange(5) + 9, part)
    length = math.sqrt(part * 169)
    side = round(length) if threat.norm == "linf" else min(range(3, 13, 2), key=lambda odd: abs(odd - length))
    for image, before, after in zip(images, points, changed, strict=True):
        touched = (before - after).abs().amax(0) > 1e-6
        if threat.norm == "linf":
            rows, columns = touched.nonzero().unbind(1)
            assert rows.max() - rows.min() < side
            assert columns.max() - columns.min() < side
            assert ((after - image).abs()[:, touched] <= 0.1 + 1e-6).all()
        else:
            assert 1 <= touched.sum() <= 2 * side**2
            emptied = touched & ((after - image).abs().amax(0) == 0.0)
            assert emptied.sum() <= side**2


def test_positions_signs_and_orientations_cover_what_they_can() -> None:
    threat, grey = Threat("linf", 0.1), torch.full((400, 1, 6, 6), 0.5)
    points = changed_points(threat, grey, grey, torch.arange(400), 4 / 36)
    corners = {tuple((point != 0.5)[0].nonzero()[0].tolist()) for point in points}
    assert corners == {(row, column) for row in range(5) for column in range(5)}
    assert {round(value, 3) for value in (points - grey).unique().tolist()} == {-0.1, 0.0, 0.1}


def test_the_squares_shrink_as_published_whatever_the_number_of_queries() -> None:
    for queries in (10000, 5000, 1000):
        attack = Square(Threat("linf", 0.1), queries=queries)
        parts = [attack.part(query) for query in range(queries)]
        for share, halvings in ((0.0, 0), (0.003, 1), (0.01, 2), (0.04, 3), (0.08, 4), (0.15, 5), (0.99, 9)):
            assert parts[int(share * queries)] == 0.8 / 2**halvings
        assert parts == sorted(parts, reverse=True)
