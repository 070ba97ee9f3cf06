from __future__ import annotations

from collections.abc import Callable
from math import atan, degrees

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from distsens.data import augment
from distsens.data.trivial_augment import OPERATIONS
from distsens.randomness import sample_keys

LEVELS = range(-30, 31)
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 20, 34)]


def _image(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    noise = np.random.default_rng(seed).integers(40, 220, size=(1, *shape))
    return torch.from_numpy(noise.astype(np.uint8))


def _affine(image: Tensor, translate: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0, 0)) -> Tensor:
    center = [0, 0] if any(shear) else None
    return tv.affine(image, 0.0, list(translate), 1.0, [degrees(atan(slope)) for slope in shear], center=center)


TORCHVISION: dict[str, Callable[[Tensor, int], Tensor]] = {
    "identity": lambda image, _: image,
    "shear_x": lambda image, level: _affine(image, shear=(0.99 * level / 30, 0)),
    "shear_y": lambda image, level: _affine(image, shear=(0, 0.99 * level / 30)),
    "translate_x": lambda image, level: _affine(image, translate=(int(32 * level / 30), 0)),
    "translate_y": lambda image, level: _affine(image, translate=(0, int(32 * level / 30))),
    "rotate": lambda image, level: tv.rotate(image, 135 * level / 30),
    "brightness": lambda image, level: tv.adjust_brightness(image, 1 + 0.99 * level / 30),
    "colour": lambda image, level: tv.adjust_saturation(image, 1 + 0.99 * level / 30),
    "contrast": lambda image, level: tv.adjust_contrast(image, 1 + 0.99 * level / 30),
    "sharpness": lambda image, level: tv.adjust_sharpness(image, 1 + 0.99 * level / 30),
    "posterize": lambda image, level: tv.posterize(image, 8 - round(abs(level) / 5)),
    "solarize": lambda image, level: tv.solarize(image, 255 * (30 - abs(level)) / 30),
    "auto_contrast": lambda image, _: tv.autocontrast(image),
    "equalize": lambda image, _: tv.equalize(image),
}
"""The same operations by torchvision, with the magnitudes of the paper's wide space at 31 equal steps."""

ONE_LEVEL_APART = {"colour": 0.01, "contrast": 0.3, "sharpness": 0.001, "brightness": 0.001, "auto_contrast": 0.001}
"""Part of the values that may be one grey level from torchvision's, which rounds its means and products otherwise."""


def test_the_operations_are_the_papers_fourteen() -> None:
    assert OPERATIONS.keys() == TORCHVISION.keys()
    assert len(OPERATIONS) == 14


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_torchvisions_image_at_every_level(name: str, shape: tuple[int, int, int]) -> None:
    image = _image(shape)
    levels = torch.tensor(list(LEVELS))
    ours = OPERATIONS[name](image.expand(len(levels), -1, -1, -1), levels)
    theirs = torch.cat([TORCHVISION[name](image, level) for level in LEVELS])
    apart = (ours.int() - theirs.int()).abs()
    assert ours.dtype == torch.uint8
    if name == "rotate":  # turned by 45 or 135 degrees, the pixels of a diagonal have two neighbours equally near
        tied = (levels.abs() - 20).abs() == 10
        assert (apart[tied] > 0).float().mean() < 0.05
        apart = apart[~tied]
    assert apart.max() <= 1
    assert (apart > 0).float().mean() <= ONE_LEVEL_APART.get(name, 0)
    assert name == "identity" or not torch.equal(ours, image.expand_as(ours)) or (name, shape[0]) == ("colour", 1)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_plain_image_survives_every_operation(name: str) -> None:
    plain = torch.full((61, 3, 8, 8), 77, dtype=torch.uint8)
    theirs = torch.cat([TORCHVISION[name](plain[:1], level) for level in LEVELS])
    assert torch.equal(OPERATIONS[name](plain, torch.tensor(list(LEVELS))), theirs)


def test_a_sharp_image_of_two_rows_has_no_inside_to_smooth() -> None:
    image = _image((3, 2, 5))
    assert torch.equal(OPERATIONS["sharpness"](image, torch.tensor([30])), image)


def test_operations_strengths_and_signs_are_equally_likely() -> None:
    count, names = 6000, ("brightness", "rotate")
    image = _image((1, 24, 24))
    batch = image.expand(61, -1, -1, -1)
    settings = {
        made.numpy().tobytes(): (name, level)
        for name in names
        for level, made in zip(LEVELS, OPERATIONS[name](batch, torch.tensor(list(LEVELS))), strict=True)
        if level != 0
    }
    assert len(settings) == 2 * 60
    made = augment(image.expand(count, -1, -1, -1), ["trivial_augment"], sample_keys(torch.arange(count), 0))
    seen = [setting for one in made if (setting := settings.get(one.numpy().tobytes()))]
    for name in names:
        levels = [level for operation, level in seen if operation == name]
        expected = count / 14 * 30 / 31
        assert len(levels) == pytest.approx(expected, abs=5 * expected**0.5)
        assert sum(level > 0 for level in levels) == pytest.approx(expected / 2, abs=5 * (expected / 4) ** 0.5)
        assert {abs(level) for level in levels} == set(range(1, 31))


def test_an_image_depends_on_its_key_and_not_on_its_batch() -> None:
    images = torch.cat([_image((3, 16, 16), seed) for seed in range(60)])
    keys = sample_keys(torch.arange(60), 3)
    together = augment(images, ["trivial_augment"], keys)
    alone = [augment(images[i : i + 1], ["trivial_augment"], keys[i : i + 1]) for i in range(60)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, images)
