"""The front is what nothing dominates, and its hypervolume is the area that it dominates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsens.search import Point, hypervolume, pareto_front

# On a grid, so that points share coordinates, and areas are counted exactly in cells.
_CELLS = 12
points = st.lists(
    st.builds(lambda c, r: Point(c / _CELLS, r / _CELLS), st.integers(0, _CELLS), st.integers(0, _CELLS)), max_size=12
)


@given(points)
def test_the_front_is_what_no_other_point_dominates(some: list[Point]) -> None:
    undominated = {one for one in some if not any(other.dominates(one) for other in some)}
    front = [some[position] for position in pareto_front(some)]
    assert set(front) == undominated
    assert len(front) == len(undominated)


@given(points)
def test_the_front_rises_in_clean_and_falls_in_robust_accuracy(some: list[Point]) -> None:
    front = [some[position] for position in pareto_front(some)]
    assert [one.clean for one in front] == sorted({one.clean for one in front})
    assert [one.robust for one in front] == sorted({one.robust for one in front}, reverse=True)


@given(points)
def test_the_hypervolume_is_the_part_of_the_square_below_some_point(some: list[Point]) -> None:
    below = sum(
        any(one.clean * _CELLS > x + 0.5 and one.robust * _CELLS > y + 0.5 for one in some)
        for x in range(_CELLS)
        for y in range(_CELLS)
    )
    assert hypervolume(some) == pytest.approx(below / _CELLS**2)


def test_of_equal_points_the_first_is_on_the_front() -> None:
    assert pareto_front([Point(0.5, 0.5), Point(0.5, 0.5)]) == [0]
