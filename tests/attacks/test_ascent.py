from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from distsens.attacks import Threat
from distsens.attacks.ascent import Ascent, MomentumAscent, SparseAscent, begin, checkpoints

_STEPS = 30
_LOSSES = hnp.arrays("float64", (_STEPS + 1, 3), elements=st.floats(-1.0, 1.0)).map(torch.from_numpy)


def _begun(threat: Threat, losses: Tensor, coordinates: int = 4) -> Ascent:
    count = len(losses)
    images = torch.full((count, 1, 1, coordinates), 0.5, dtype=losses.dtype)
    labels = torch.zeros(count, 1, dtype=torch.int64)
    return begin(threat, torch.arange(count), images, labels, images, losses, torch.ones_like(images))


def test_the_checkpoints_of_a_hundred_steps_are_those_of_the_paper() -> None:
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)


@given(st.integers(1, 400))
def test_checkpoints_follow_the_recursion_of_the_paper(steps: int) -> None:
    parts = [0.0, 0.22]
    while parts[-1] <= 1.0:
        parts.append(parts[-1] + max(parts[-1] - parts[-2] - 0.03, 0.06))
    expected = sorted({math.ceil(round(part * steps, 9)) for part in parts[1:-1]})
    assert list(checkpoints(steps)) == expected


@settings(max_examples=50)
@given(_LOSSES)
def test_step_sizes_are_halved_and_the_best_iterate_restored_as_published(losses: Tensor) -> None:
    threat = Threat("linf", 0.1)
    ascent = _begun(threat, losses[0])
    points, traced = [ascent.points], []
    for step in range(1, _STEPS + 1):
        ascent = ascent.moved(threat, step)
        points.append(ascent.points)
        ascent = ascent.observed(losses[step], (0.5 - torch.rand(3, 1, 1, 4)).double()).adapted(threat, step, _STEPS)
        traced.append(ascent.sizes)
    for image in range(3):
        sizes, marks = [0.2], [0, *checkpoints(_STEPS)]
        values = losses[:, image].tolist()
        for previous, mark in itertools.pairwise(marks):
            few = sum(values[i + 1] > values[i] for i in range(previous, mark)) < 0.75 * (mark - previous)
            unchanged = len(sizes) < 2 or sizes[-1] == sizes[-2]
            stalled = unchanged and max(values[: previous + 1]) == max(values[: mark + 1])
            sizes.append(sizes[-1] / 2 if few or stalled else sizes[-1])
        assert [traced[mark - 1][image].item() for mark in marks[1:]] == pytest.approx(sizes[1:])
        assert torch.equal(ascent.best[image], points[values.index(max(values))][image])


def test_where_the_step_size_is_halved_the_climb_goes_on_from_the_best_iterate() -> None:
    threat = Threat("l2", 0.3)
    ascent = _begun(threat, torch.zeros(2))
    assert isinstance(ascent, MomentumAscent)
    ascent = ascent.moved(threat, 1).observed(torch.tensor([1.0, 1.0]), torch.full((2, 1, 1, 4), 2.0))
    best = ascent.points
    last = checkpoints(40)[0]
    ascent = replace(ascent.moved(threat, 2), rises=torch.tensor([0, last]))
    ascent = ascent.observed(torch.tensor([0.5, 0.5]), torch.full((2, 1, 1, 4), -1.0))
    before = ascent.points
    ascent = ascent.adapted(threat, last, 40)
    assert torch.equal(ascent.points[0], best[0])
    assert (ascent.gradients[0] == 2.0).all()
    assert torch.equal(ascent.points[1], before[1])
    assert (ascent.gradients[1] == -1.0).all()
    assert ascent.sizes.tolist() == pytest.approx([0.3, 0.6])


def test_a_sparse_step_is_shared_by_the_largest_components_of_the_gradient() -> None:
    threat = Threat("l1", 3.0)
    ascent = replace(
        _begun(threat, torch.zeros(2), 10),
        gradients=torch.arange(-5.0, 5.0).expand(2, 1, 1, 10),
        sparsity=torch.tensor([2.0, 3.4]),
        sizes=torch.tensor([0.2, 0.4]),
    )
    offsets = (ascent.moved(threat, 1).points - ascent.images).flatten(1)
    expected = [[-0.1, -0.1] + [0.0] * 8, [-0.1, -0.1, -0.1] + [0.0] * 6 + [0.1]]
    torch.testing.assert_close(offsets, torch.tensor(expected))


def test_sparsity_and_step_sizes_follow_the_best_iterate() -> None:
    threat = Threat("l1", 3.0)
    ascent = _begun(threat, torch.zeros(3), 90)
    assert isinstance(ascent, SparseAscent)
    best = ascent.images.clone()
    best[0, ..., :30] += 0.01
    best[1, ..., :6] += 0.01
    ascent = replace(ascent, best=best, sparsity=torch.full((3,), 18.0), sizes=torch.tensor([0.9, 0.9, 0.4]))
    same = ascent.adapted(threat, 5, 100)
    assert same is ascent
    adapted = ascent.adapted(threat, 8, 100)
    assert isinstance(adapted, SparseAscent)
    torch.testing.assert_close(adapted.sparsity, torch.tensor([20.0, 4.0, 1.0]))
    torch.testing.assert_close(adapted.sizes, torch.tensor([0.6, 3.0, 3.0]))
    assert torch.equal(adapted.points[1], best[1])
    assert torch.equal(adapted.points[0], ascent.points[0])
    large = replace(adapted, sparsity=adapted.sparsity, sizes=torch.full((3,), 0.31)).adapted(threat, 12, 100)
    torch.testing.assert_close(large.sizes, torch.full((3,), 0.3))


@pytest.mark.parametrize(("changed", "expected"), [(60, 18.0), (12, 8.0), (0, 1.0)])
def test_a_sparse_climb_starts_as_sparse_as_its_start_and_with_a_fifth_of_the_coordinates_at_most(
    changed: int, expected: float
) -> None:
    images = torch.full((1, 1, 1, 90), 0.5)
    points = images.clone()
    points[..., :changed] += 0.01
    settings: dict[str, Any] = {"losses": torch.zeros(1), "gradients": torch.ones_like(images)}
    ascent = begin(Threat("l1", 3.0), torch.zeros(1), images, torch.zeros(1, 1), points, **settings)
    assert isinstance(ascent, SparseAscent)
    assert ascent.sparsity.item() == pytest.approx(expected)


def test_images_that_leave_take_their_rows_with_them() -> None:
    ascent = _begun(Threat("linf", 0.1), torch.tensor([0.0, 1.0, 2.0]))
    kept = ascent.kept(torch.tensor([True, False, True]))
    assert kept.rows.tolist() == [0, 2]
    assert kept.losses.tolist() == [0.0, 2.0]
    assert kept.points.shape == (2, 1, 1, 4)
