"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels that need no download."""

from __future__ import annotations

import numpy as np

from distsens.data.images import ImageSet, Published
from distsens.data.source import Source
from distsens.data.split import stratified_sample

_CLASSES = tuple("0123456789")
_TEST_COUNT = 360  # about a fifth
_TEST_SEED = 0


def read(_source: Source) -> Published:
    """Ten classes, 1,437 training and 360 test images.

    The data come without a test set. The one drawn here is stratified and always the same, whatever the seed of a
    run, so that results can be compared. Grey values 0..16 are scaled to 0..255.
    """
    from sklearn.datasets import load_digits  # here, because it takes a second that other data sets need not wait for

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    everything = ImageSet(images, bunch.target.astype(np.int64))
    test = stratified_sample(everything.labels, _TEST_COUNT, _TEST_SEED, "digits test")
    train = np.setdiff1d(np.arange(len(everything)), test, assume_unique=True)
    return Published(_CLASSES, everything.take(train), everything.take(test))
