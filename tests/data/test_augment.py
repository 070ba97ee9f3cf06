from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distsens.data import AUGMENTATIONS, augment, to_pixels
from distsens.errors import InputError
from distsens.randomness import sample_keys


def _batch(count: int, channels: int = 3, height: int = 16, width: int = 16) -> tuple[Tensor, Tensor]:
    """Images whose pixels differ (none is 0, the padding), and their keys."""
    values = 1 + np.random.default_rng(0).integers(255, size=(count, channels, height, width))
    return torch.from_numpy(values.astype(np.uint8)), sample_keys(torch.arange(count), 0, "augmentation")


def _crops(image: Tensor, pad: int) -> dict[bytes, tuple[int, int]]:
    """Every crop of one padded image, and where it lies."""
    _, height, width = image.shape
    padded = np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)))
    return {
        padded[:, top : top + height, left : left + width].tobytes(): (top, left)
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
    }


def test_pixels_are_float32_in_the_unit_interval() -> None:
    pixels = to_pixels(torch.arange(256, dtype=torch.uint8))
    assert pixels.dtype == torch.float32
    assert np.array_equal(pixels.numpy(), np.arange(256, dtype=np.float32) / np.float32(255))


@pytest.mark.parametrize(("height", "width", "pad"), [(8, 8, 1), (32, 32, 4), (28, 28, 3), (16, 24, 2), (7, 7, 0)])
def test_a_crop_is_one_of_the_crops_of_the_padded_image(height: int, width: int, pad: int) -> None:
    images, keys = _batch(40, height=height, width=width)
    cropped = augment(images, ["crop"], keys)
    assert cropped.dtype == torch.uint8
    for image, crop in zip(images, cropped, strict=True):
        assert crop.numpy().tobytes() in _crops(image, pad)


def test_every_crop_is_equally_likely() -> None:
    images, _ = _batch(1, channels=1, height=8, width=8)
    count = 9000
    cropped = augment(images.expand(count, -1, -1, -1), ["crop"], sample_keys(torch.arange(count), 1))
    places = _crops(images[0], 1)
    seen = Counter(places[crop.numpy().tobytes()] for crop in cropped)
    assert len(seen) == 9
    assert max(abs(times - count / 9) for times in seen.values()) < 5 * (count / 9) ** 0.5


def test_half_of_the_images_are_mirrored_and_the_others_untouched() -> None:
    images, keys = _batch(1000, channels=1, height=4, width=6)
    flipped = augment(images, ["flip"], keys)
    mirrored = [torch.equal(new, old.flip(-1)) for old, new in zip(images, flipped, strict=True)]
    untouched = [torch.equal(new, old) for old, new in zip(images, flipped, strict=True)]
    assert all(one != other for one, other in zip(mirrored, untouched, strict=True))
    assert sum(mirrored) == pytest.approx(500, abs=80)  # five standard deviations of 16


@given(st.lists(st.integers(0, 19), min_size=1, max_size=20), st.permutations(list(AUGMENTATIONS)))
def test_an_image_depends_on_its_key_and_not_on_its_batch(samples: list[int], names: list[str]) -> None:
    images, keys = _batch(20, height=8, width=8)
    assert torch.equal(augment(images[samples], names, keys[samples]), augment(images, names, keys)[samples])


def _squares(height: int, width: int) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Rows and columns that a square of side H // 2 around each pixel hides."""
    side = height // 2

    def spans(size: int) -> list[tuple[int, ...]]:
        return [tuple(sorted({*range(size)} & {*range(c - side // 2, c - side // 2 + side)})) for c in range(size)]

    return {(rows, columns) for rows in spans(height) for columns in spans(width)}


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 12), (32, 32)])
def test_cutout_hides_one_square_that_may_stick_out(height: int, width: int) -> None:
    images, keys = _batch(200, height=height, width=width)
    cut = augment(images, ["cutout"], keys)
    allowed = _squares(height, width)
    for old, new in zip(images, cut, strict=True):
        hidden = (new == 0).all(0)
        rows, columns = (tuple(hidden.any(1 - axis).nonzero().flatten().tolist()) for axis in (0, 1))
        assert (rows, columns) in allowed
        assert torch.equal(new == 0, (hidden.any(1)[:, None] & hidden.any(0)).expand_as(new))
        assert torch.equal(new[new > 0], old[new > 0])


def test_every_place_of_the_square_is_equally_likely() -> None:
    images, _ = _batch(1, channels=1, height=4, width=4)
    count = 8000
    cut = augment(images.expand(count, -1, -1, -1), ["cutout"], sample_keys(torch.arange(count), 1)) == 0
    seen = Counter(hidden.numpy().tobytes() for hidden in cut)
    assert len(seen) == 16
    assert max(abs(times - count / 16) for times in seen.values()) < 5 * (count / 16) ** 0.5


def test_flips_and_crops_are_independent() -> None:
    images, _ = _batch(1, channels=1, height=8, width=8)
    keys = sample_keys(torch.arange(3000), 1)
    batch = images.expand(3000, -1, -1, -1)
    at_the_top = (augment(batch, ["crop"], keys)[:, 0, 0] == 0).all(dim=1)  # its first row is padding
    mirrored = (augment(batch, ["flip"], keys) != batch).flatten(1).any(dim=1)
    assert mirrored[at_the_top].float().mean().item() == pytest.approx(0.5, abs=0.08)  # five standard deviations


def test_adding_an_augmentation_does_not_change_what_another_does() -> None:
    images, keys = _batch(50)
    assert torch.equal(
        augment(images, ["crop", "flip"], keys), augment(augment(images, ["crop"], keys), ["flip"], keys)
    )
    assert not torch.equal(augment(images, ["crop", "flip"], keys), augment(images, ["crop"], keys))


def test_neither_the_images_nor_the_global_generator_are_touched() -> None:
    images, keys = _batch(10)
    original, state = images.clone(), torch.get_rng_state()
    augment(images, list(AUGMENTATIONS), keys)
    assert torch.equal(images, original)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_keys_augment_otherwise() -> None:
    images, keys = _batch(50)
    assert not torch.equal(augment(images, ["crop"], keys), augment(images, ["crop"], sample_keys(keys, 1)))


def test_no_names_leave_the_images_as_they_are() -> None:
    images, keys = _batch(3)
    assert torch.equal(augment(images, [], keys), images)


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    images, keys = _batch(1)
    with pytest.raises(
        InputError, match=r"data\.augment: got 'spin'; must be one of crop, flip, cutout, trivial_augment"
    ):
        augment(images, ["spin"], keys)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_images_as_the_cpu() -> None:
    images, keys = _batch(200, height=32, width=32)
    on_gpu = augment(images.cuda(), list(AUGMENTATIONS), keys.cuda())
    assert torch.equal(on_gpu.cpu(), augment(images, list(AUGMENTATIONS), keys))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_floating_point_pixels_stay_and_others_are_refused(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    pixels = to_pixels(levels)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, levels.float() / 255)
    assert torch.equal(to_pixels(pixels), pixels)
    assert torch.equal(to_pixels(pixels.to(dtype)), pixels.to(dtype).float())
    assert to_pixels(pixels[:0]).shape == (0, 1, 16, 16)
    for wrong in (levels, 2.0 * pixels, pixels - 0.5, pixels / 0.0):
        with pytest.raises(InputError, match=r"adversarial: got \(.*\); floating-point pixels must lie in \[0, 1\]"):
            to_pixels(wrong.to(dtype), "adversarial")
    with pytest.raises(InputError, match="images: got 'int64'; must be uint8"):
        to_pixels(levels.long())
