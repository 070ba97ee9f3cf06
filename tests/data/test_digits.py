from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from distsens.data import Dataset, Source, load


def _digits(seed: int = 0, fraction: float = 0.1) -> Dataset:
    return load("digits", Source(None), validation_fraction=fraction, seed=seed)


def test_the_splits_together_are_the_published_images() -> None:
    dataset = _digits()
    splits = (dataset.train, dataset.validation, dataset.test)
    ours = Counter(
        (image.tobytes(), label) for split in splits for image, label in zip(split.images, split.labels, strict=True)
    )
    bunch = load_digits()
    levels = np.array([round(level * 255 / 16) for level in range(17)], np.uint8)
    theirs = Counter(
        (levels[image.astype(int)].tobytes(), label) for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    assert ours == theirs
    assert [len(split) for split in splits] == [1293, 144, 360]
    assert dataset.shape == (1, 8, 8)
    assert dataset.classes == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert dataset.train.images.max() == 255


def test_the_test_split_is_stratified_and_the_same_for_every_seed() -> None:
    one, other = _digits(seed=0), _digits(seed=1, fraction=0.3)
    assert one.test.digest() == other.test.digest()
    assert one.validation.digest() != other.validation.digest()
    published = np.bincount(load_digits().target)
    assert np.bincount(one.test.labels) == pytest.approx(published * 360 / 1797, abs=1)
