from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from distsens.data import Dataset, ImageSet, as_tensor
from distsens.errors import InputError


def _images(count: int, classes: int = 3, size: int = 2) -> ImageSet:
    pixels = np.arange(count * size * size, dtype=np.uint8).reshape(count, 1, size, size)
    return ImageSet(pixels, np.arange(count, dtype=np.int64) % classes)


@pytest.mark.parametrize(
    ("images", "labels", "field"),
    [
        (np.zeros((2, 1, 4, 4), np.float32), np.zeros(2, np.int64), "images"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64), "images"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.int32), "labels"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(3, np.int64), "labels"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros((2, 1), np.int64), "labels"),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(images: np.ndarray, labels: np.ndarray, field: str) -> None:
    with pytest.raises(InputError) as error:
        ImageSet(images, labels)
    assert error.value.field == field


def test_an_image_set_is_frozen_and_knows_its_size() -> None:
    images = _images(5)
    assert len(images) == 5
    assert images.shape == (1, 2, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        images.labels = np.zeros(5, np.int64)  # type: ignore[misc]


def test_taking_samples_keeps_their_order_and_copies_them() -> None:
    images = _images(5)
    taken = images.take(np.array([3, 0]))
    assert taken.labels.tolist() == [0, 0]
    assert np.array_equal(taken.images, np.stack([images.images[3], images.images[0]]))
    assert not np.shares_memory(taken.images, images.images)


def test_the_digest_depends_on_content_shape_and_order_but_not_on_memory_layout() -> None:
    images = _images(4)
    other_pixel = images.images.copy()
    other_pixel[1, 0, 1, 1] += 1
    reshaped = images.images.reshape(4, 1, 1, 4)
    strided = np.repeat(images.images, 2, axis=0)[::2]
    same = [images, images.take(np.arange(4)), ImageSet(strided, images.labels)]
    different = [
        ImageSet(other_pixel, images.labels),
        ImageSet(images.images, images.labels[::-1].copy()),
        ImageSet(reshaped, images.labels),
        images.take(np.array([1, 0, 2, 3])),
        images.take(np.arange(3)),
    ]
    assert len({each.digest() for each in same}) == 1
    assert len({each.digest() for each in [images, *different]}) == 1 + len(different)


def test_a_data_set_has_the_shape_of_its_images_and_a_digest_of_all_splits() -> None:
    dataset = Dataset("tiny", ("a", "b", "c"), _images(6), _images(3), _images(4))
    assert dataset.shape == (1, 2, 2)
    renamed = dataclasses.replace(dataset, name="other")
    swapped = dataclasses.replace(dataset, validation=dataset.test, test=dataset.validation)
    assert dataset.digest() == renamed.digest() != swapped.digest()


def test_splits_of_different_shape_are_refused() -> None:
    with pytest.raises(InputError, match="every split must have images of shape"):
        Dataset("tiny", ("a", "b", "c"), _images(6), _images(3), _images(4, size=3))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_a_class_is_refused(label: int) -> None:
    odd = ImageSet(_images(3).images, np.array([0, 1, label]))
    with pytest.raises(InputError, match=r"must be 0 to 2"):
        Dataset("tiny", ("a", "b", "c"), _images(6), odd, _images(4))


def test_a_tensor_shares_the_memory_of_its_array() -> None:
    array = np.zeros(3, np.uint8)
    tensor = as_tensor(array)
    array[1] = 7
    assert tensor.tolist() == [0, 7, 0]
    assert tensor.dtype == torch.uint8


def test_a_read_only_array_gives_a_tensor_without_a_warning() -> None:
    # In a fresh process, because PyTorch gives this warning once only.
    script = """
import warnings, numpy, torch
from distsens.data import as_tensor
array = numpy.arange(3)
array.flags.writeable = False
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.set_warn_always(True)
    assert as_tensor(array).tolist() == [0, 1, 2]
    assert not caught, caught[0].message
    torch.from_numpy(array)
    assert len(caught) == 1, "PyTorch no longer warns: as_tensor is not needed any more"
"""
    subprocess.run([sys.executable, "-c", script], check=True)
