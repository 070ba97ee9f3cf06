from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsens.data import hold_out, representatives, stratified_sample
from distsens.errors import InputError

labels_of_some_classes = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(lambda x: np.array(x, np.int64))


@given(labels_of_some_classes, st.data())
def test_every_class_gets_its_share_rounded_down_or_up(labels: np.ndarray, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(labels)))
    samples = stratified_sample(labels, count, 0, "test")
    assert len(samples) == count
    assert np.all(np.diff(samples) > 0)
    for label in np.unique(labels):
        share = Fraction(int((labels == label).sum()) * count, len(labels))
        assert abs(int((labels[samples] == label).sum()) - share) < 1


@given(st.integers(1, 4), st.integers(2, 30), st.floats(0.01, 0.99), st.integers(0, 2**40))
def test_the_two_sides_are_disjoint_and_together_everything(
    classes: int, images_per_class: int, fraction: float, seed: int
) -> None:
    labels = np.arange(classes * images_per_class, dtype=np.int64) % classes
    size = round(fraction * len(labels))
    if not classes <= size <= len(labels) - classes:
        with pytest.raises(InputError):
            hold_out(labels, fraction, seed)
        return
    kept, held_out = hold_out(labels, fraction, seed)
    assert len(held_out) == size
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    assert set(labels[kept]) == set(labels[held_out]) == set(range(classes))


def test_the_seed_alone_decides() -> None:
    labels = np.arange(1000, dtype=np.int64) % 10
    draws = [hold_out(labels, 0.2, seed)[1].tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_draws_for_different_purposes_are_independent() -> None:
    labels = np.zeros(10_000, np.int64)
    one, other = (stratified_sample(labels, 5000, 0, purpose) for purpose in ("one", "other"))
    assert len(np.intersect1d(one, other)) == pytest.approx(2500, abs=150)  # three standard deviations of 50 and more


def test_each_sample_of_a_class_is_equally_likely() -> None:
    labels = np.repeat([0, 1], [10, 30]).astype(np.int64)
    counts = np.zeros(40)
    for seed in range(2000):
        counts[stratified_sample(labels, 20, seed, "test")] += 1
    assert np.abs(counts / 2000 - 0.5).max() < 0.056  # five standard deviations


def test_some_images_that_stand_for_all_are_of_every_class_and_always_the_same() -> None:
    sorted_by_class = np.repeat(np.arange(4), 250).astype(np.int64)
    assert np.bincount(sorted_by_class[representatives(sorted_by_class, 500)]).tolist() == [125] * 4
    assert np.array_equal(representatives(sorted_by_class, 500), representatives(sorted_by_class, 500))
    assert representatives(sorted_by_class, 5000).tolist() == list(range(1000))
    assert representatives(np.zeros(0, np.int64), 5).tolist() == []


def test_a_class_that_is_too_small_to_be_split_is_named_with_its_images() -> None:
    labels = np.repeat([0, 1, 2], [40, 1, 3]).astype(np.int64)
    with pytest.raises(
        InputError, match=r"of 3 classes an image on both sides; class 'bee' has 1 image, too few to be"
    ):
        hold_out(labels, 0.1, 0, classes=("ant", "bee", "cat"))
    with pytest.raises(InputError, match=r"class 1 has 3 images$"):
        hold_out(np.repeat([0, 1], [40, 3]).astype(np.int64), 0.1, 0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan"), 0.001, 0.999])
def test_a_fraction_that_leaves_a_class_without_images_is_refused(fraction: float) -> None:
    with pytest.raises(InputError) as error:
        hold_out(np.arange(100, dtype=np.int64) % 10, fraction, 0)
    assert error.value.field == "data.validation_fraction"
