from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distsens.attacks import Norm, Square, Threat
from distsens.attacks.squares import changed_points, first_points, square_side, tiles
from distsens.attacks.tally import inner
from distsens.randomness import sample_keys, uniform

_THREATS = [Threat("linf", 0.1), Threat("l2", 1.3), Threat("l1", 4.0)]
_SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 11))


def _images(shape: tuple[int, int, int]) -> Tensor:
    pixels = torch.rand(5, *shape, generator=torch.Generator().manual_seed(3))
    return (1.5 * pixels - 0.25).clamp(0.0, 1.0)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 10])
@pytest.mark.parametrize(("norm", "order", "power"), [("l2", 2, 2), ("l1", 1, 4)])
def test_a_tile_is_the_papers_sum_in_two_halves_of_opposite_sign_and_the_same_norm_in_l1_of_the_fourth_power(
    side: int, norm: Norm, order: int, power: int
) -> None:
    n = side // 2
    expected = torch.zeros(side, side, dtype=torch.float64)
    for first, width, sign in ((0, n, 1.0), (n, side - n, -1.0)):
        half = torch.zeros(side, width, dtype=torch.float64)
        for r in range(1, side + 1):
            for s in range(1, width + 1):
                last = n - max(abs(r - n - 1), abs(s - width // 2 - 1))
                half[r - 1, s - 1] = sum(1.0 / (n + 1 - k) ** power for k in range(last + 1))
        if width:
            expected[:, first : first + width] = sign * half / half.pow(order).sum() ** (1.0 / order)
    expected /= expected.abs().pow(order).sum() ** (1.0 / order)
    torch.testing.assert_close(tiles(side, norm), torch.stack([expected, expected.T]))


@settings(max_examples=60)
@given(st.sampled_from(_THREATS), _SHAPES, st.floats(1e-4, 1.0))
def test_points_of_any_shape_stay_in_ball_and_pixel_range(
    threat: Threat, shape: tuple[int, int, int], part: float
) -> None:
    images, keys = _images(shape), torch.arange(5)
    points = first_points(inner(threat), images, keys)
    for change in range(3):
        assert (threat.distance(images.double(), points.double()) <= threat.eps + 1e-6).all()
        assert points.min() >= 0.0
        assert points.max() <= 1.0
        assert points.dtype == torch.float32
        points = changed_points(inner(threat), points, images, keys + 10 * change, part)


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


@pytest.mark.parametrize("part", [0.05, 0.3])
@pytest.mark.parametrize("threat", _THREATS[:2], ids=lambda threat: threat.norm)
def test_a_change_touches_one_square_and_in_l2_a_second_that_becomes_zero(threat: Threat, part: float) -> None:
    images = _images((2, 13, 13))
    points = first_points(threat, images, torch.arange(5))
    changed = changed_points(threat, points, images, torch.arange(5) + 9, part)
    side = square_side(threat.norm, part, 13, 13)
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


@pytest.mark.parametrize("part", [0.05, 0.3])
def test_in_l1_the_square_gets_for_each_channel_all_that_there_is_and_the_projection_takes_it_back(
    part: float, nearest: Callable[[np.ndarray, np.ndarray, float, int], np.ndarray]
) -> None:
    threat, images, keys = Threat("l1", 4.0), _images((2, 13, 13)), torch.arange(5) + 9
    points = first_points(threat, images, torch.arange(5))
    changed = changed_points(threat, points, images, keys, part)
    side = square_side("l1", part, 13, 13)
    numbers = uniform(keys, (7,)).double().numpy()
    for image, before, after, drawn in zip(
        *(x.double().numpy() for x in (images, points, changed)), numbers, strict=True
    ):
        top, left, other_top, other_left = (int(number * (13 - side)) for number in drawn[:4])
        offsets = before - image
        touched = np.zeros((13, 13), dtype=bool)
        for row, column in ((top, left), (other_top, other_left)):
            touched[row : row + side, column : column + side] = True
        left_over = max(4.0 - np.abs(offsets).sum(), 0.0)
        wanted = offsets.copy()
        wanted[:, other_top : other_top + side, other_left : other_left + side] = 0.0
        for channel in range(2):
            old = offsets[channel, top : top + side, left : left + side]
            sign = -1.0 if drawn[5 + channel] < 0.5 else 1.0
            new = old / (np.abs(old).sum() + 1e-12) + sign * tiles(side, "l1")[int(drawn[4] < 0.5)].numpy()
            amount = 2 * np.abs(offsets[channel])[touched].sum() + left_over
            wanted[channel, top : top + side, left : left + side] = amount * new / np.abs(new).sum()
        reach = np.where(wanted > 0.0, 1.0 - image, image)
        expected = nearest(wanted.ravel(), reach.ravel(), 4.0, 1).reshape(image.shape)
        np.testing.assert_allclose(after - image, expected, atol=2e-6)


@pytest.mark.parametrize(("norm", "least"), [("linf", 1), ("l2", 3), ("l1", 3)])
def test_sides_are_rounded_and_in_l2_and_l1_the_next_odd_number(norm: Norm, least: int) -> None:
    for size in (5, 8, 28, 32):
        for halvings in range(10):
            part = 0.8 / 2**halvings
            expected = max(round((part * size * size) ** 0.5), least)
            if norm != "linf" and expected % 2 == 0:
                expected += 1
            assert square_side(norm, part, size, size) == min(expected, size)


def test_positions_signs_and_orientations_cover_what_they_can_in_autoattack() -> None:
    threat, grey = Threat("linf", 0.1), torch.full((400, 1, 6, 6), 0.5)
    points = changed_points(threat, grey, grey, torch.arange(400), 4 / 36)
    corners = {tuple((point != 0.5)[0].nonzero()[0].tolist()) for point in points}
    assert corners == {(row, column) for row in range(4) for column in range(4)}
    assert {round(value, 3) for value in (points - grey).unique().tolist()} == {-0.1, 0.0, 0.1}
    assert (changed_points(threat, grey, grey, torch.arange(400), 1.0) != 0.5).all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize(("size", "first", "last"), [(28, 1, 26), (32, 1, 31), (8, 1, 8), (3, 0, 3)])
def test_the_first_tiles_lie_where_autoattacks_lie(norm: Norm, size: int, first: int, last: int) -> None:
    grey = torch.full((3, 1, size, size), 0.5)
    touched = (first_points(Threat(norm, 1e4), grey, torch.arange(3)) != 0.5).all(0)[0]
    expected = torch.zeros_like(touched)
    expected[first:last, first:last] = True
    assert torch.equal(touched, expected)


@pytest.mark.parametrize("queries", [1, 300, 5000, 10000])
def test_the_squares_shrink_after_the_published_changes_whatever_the_number_of_queries(queries: int) -> None:
    attack = Square(Threat("linf", 0.1), queries=queries)
    lasts = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000, queries)
    first = 0
    for halvings, last in enumerate(lasts):
        for change in range(first, min(last + 1, queries)):
            assert attack.part(change) == 0.8 / 2**halvings
        first = last + 1


def test_what_is_shown_after_the_image_is_the_first_point_and_then_one_change_for_each_query() -> None:
    images, shown = _images((1, 6, 6)), []

    class Stubborn(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            shown.append(points.detach())
            # Every change is an improvement, and no image is ever misclassified.
            return torch.tensor([[100.0, float(len(shown))]]).expand(len(points), 2)

    threat, keys = Threat("linf", 0.1), torch.arange(5)
    attack = Square(threat, queries=13)
    found = attack(Stubborn(), images, torch.zeros(5, dtype=torch.int64), keys=keys)
    assert found.evaluations.tolist() == [1 + 1 + 13] * 5
    drawn = sample_keys(keys, "square", 0)
    point = first_points(threat, images, sample_keys(drawn, "start"))
    shown = shown[-14:]
    assert torch.equal(shown[0], point)
    for change in range(13):
        point = changed_points(threat, point, images, sample_keys(drawn, change), 0.8 if change <= 10 else 0.4)
        assert torch.equal(shown[1 + change], point)
    assert torch.equal(found.adversarial, point)
