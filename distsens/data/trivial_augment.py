"""TrivialAugment (Müller and Hutter, ICCV 2021), wide space: to each image one random operation at a random strength.

All arithmetic on pixels is in whole numbers, so that an image comes out the same alone, in any batch and on any device.
Results are those of torchvision's operations up to one grey level; nearest neighbours that are equally near can differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from distsens.randomness import uniform

_STRONGEST = 30
"""Strengths are whole numbers 0..30: the paper's 31 equally spaced ones."""

_THOUSANDTHS = 33
"""Shear and blending factors grow by 0.033 a strength, to 0.99."""

Operation = Callable[[Tensor, Tensor], Tensor]
"""``operation(images, level)``: uint8 images (N, C, H, W) and int64 levels (N,) in -30..30, a strength with a sign.
Operations without a direction ignore the sign."""


def trivial_augment(images: Tensor, keys: Tensor) -> Tensor:
    """Apply one of the 14 ``OPERATIONS`` to each image, all operations, strengths and signs equally likely.

    Parameters
    ----------
    images : uint8 tensor (N, C, H, W) with one channel or three (red, green, blue).
    keys : int64 tensor (N,), one key per image.
    """
    drawn = uniform(keys, (3,))
    chosen = (drawn[:, 0] * len(OPERATIONS)).to(torch.int64)
    strength = (drawn[:, 1] * (_STRONGEST + 1)).to(torch.int64)
    level = torch.where(drawn[:, 2] < 0.5, -strength, strength)
    result = images.clone()
    for number, operation in enumerate(OPERATIONS.values()):
        rows = (chosen == number).nonzero().squeeze(1)
        result[rows] = operation(images[rows], level[rows])
    return result


def _identity(images: Tensor, _level: Tensor) -> Tensor:
    return images


# Geometry: where each pixel of the result comes from, in pixels from the centre of the image.


def _sampled(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels nearest to these places, float64 (N, H, W) from the centre of the first pixel; outside is black."""
    count, channels, height, width = images.shape
    # Halves are rounded up, a little early: on the diagonal of a turn by 45 degrees only rounding errors would decide.
    rows, columns = (torch.floor(places + 0.5 + 1e-6).to(torch.int64) for places in (rows, columns))
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    source = images.flatten(2).gather(2, flat.flatten(1)[:, None].expand(-1, channels, -1))
    return (source * inside.flatten(1)[:, None]).reshape(count, channels, height, width)


def _grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column number of every pixel, float64 (1, H, 1) and (1, 1, W)."""
    _, _, height, width = images.shape
    rows, columns = (torch.arange(size, dtype=torch.float64, device=images.device) for size in (height, width))
    return rows[None, :, None], columns[None, None, :]


def _shear_x(images: Tensor, level: Tensor) -> Tensor:
    """The top edge stays; every row below moves by up to 0.99 pixels more."""
    rows, columns = _grid(images)
    slope = level[:, None, None] * (_THOUSANDTHS / 1000)
    moved = columns + slope * (rows + 0.5)
    return _sampled(images, rows.expand_as(moved), moved)


def _translate_x(images: Tensor, level: Tensor) -> Tensor:
    """Up to 32 pixels, whatever the size of the image."""
    rows, columns = _grid(images)
    pixels = torch.sign(level) * (level.abs() * 32 // _STRONGEST)
    moved = columns - pixels[:, None, None]
    return _sampled(images, rows.expand(len(moved), -1, columns.shape[2]), moved.expand(-1, rows.shape[1], -1))


def _rotate(images: Tensor, level: Tensor) -> Tensor:
    """Up to 135 degrees around the centre, counter-clockwise for a positive level."""
    rows, columns = _grid(images)
    angle = level.to(torch.float64)[:, None, None] * math.radians(135 / _STRONGEST)
    middle_row, middle_column = (rows.shape[1] - 1) / 2, (columns.shape[2] - 1) / 2
    down, right = rows - middle_row, columns - middle_column
    return _sampled(
        images,
        middle_row + torch.sin(angle) * right + torch.cos(angle) * down,
        middle_column + torch.cos(angle) * right - torch.sin(angle) * down,
    )


def _upright(operation: Operation) -> Operation:
    """The same along columns."""

    def along_columns(images: Tensor, level: Tensor) -> Tensor:
        return operation(images.transpose(2, 3), level).transpose(2, 3)

    return along_columns


# Colour.


def _blend(images: Tensor, other: Tensor, level: Tensor) -> Tensor:
    """Away from ``other`` for a positive level, towards it for a negative one: factors 0.01 to 1.99."""
    factor = (1000 + _THOUSANDTHS * level)[:, None, None, None]
    mixed = factor * images.to(torch.int64) + (1000 - factor) * other
    return torch.div(mixed, 1000, rounding_mode="floor").clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) of three channels, int64 (N, 1, H, W); one channel as it is."""
    if images.shape[1] == 1:
        return images.to(torch.int64)
    red, green, blue = images.to(torch.int64).split(1, dim=1)
    luma: Tensor = (2989 * red + 5870 * green + 1140 * blue) // 10000
    return luma


def _brightness(images: Tensor, level: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images, dtype=torch.int64), level)


def _colour(images: Tensor, level: Tensor) -> Tensor:
    return _blend(images, _grey(images), level)


def _contrast(images: Tensor, level: Tensor) -> Tensor:
    """Blended with the mean grey level, rounded."""
    pixels = images.shape[2] * images.shape[3]
    mean = (2 * _grey(images).sum((1, 2, 3), keepdim=True) + pixels) // (2 * pixels)
    return _blend(images, mean, level)


def _sharpness(images: Tensor, level: Tensor) -> Tensor:
    """Blended with the image smoothed by the kernel [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13, which leaves the edges."""
    smooth = images.to(torch.int64)
    if min(images.shape[2:]) > 2:
        triples = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
        boxes = triples[..., :-2] + triples[..., 1:-1] + triples[..., 2:]
        inner = smooth[:, :, 1:-1, 1:-1]
        smooth = torch.where(
            F.pad(torch.ones_like(inner, dtype=torch.bool), (1, 1, 1, 1)),
            F.pad((boxes + 4 * inner + 6) // 13, (1, 1, 1, 1)),
            smooth,
        )
    return _blend(images, smooth, level)


def _posterize(images: Tensor, level: Tensor) -> Tensor:
    """The 8 to 2 highest bits of each value."""
    dropped = torch.round(level.abs() / (_STRONGEST / 6)).to(torch.int64)[:, None, None, None]
    return (images.to(torch.int64) >> dropped << dropped).to(torch.uint8)


def _solarize(images: Tensor, level: Tensor) -> Tensor:
    """Values inverted from a threshold on, which falls from 255 to 0."""
    threshold = 255 * (_STRONGEST - level.abs())[:, None, None, None]
    return torch.where(_STRONGEST * images.to(torch.int64) >= threshold, 255 - images, images)


def _auto_contrast(images: Tensor, _level: Tensor) -> Tensor:
    """Each channel stretched to 0..255."""
    values = images.to(torch.int64)
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    stretched = (values - low) * 255 // (high - low).clamp(min=1)
    return torch.where(high > low, stretched, values).to(torch.uint8)


def _equalize(images: Tensor, _level: Tensor) -> Tensor:
    """Each channel's values spread so that they occur about equally often."""
    values = images.flatten(2).to(torch.int64)
    histogram = torch.zeros(*images.shape[:2], 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, values, torch.ones_like(values))
    most = histogram.gather(2, values.amax(2, keepdim=True))  # how often the highest value occurs
    step = (values.shape[2] - most) // 255
    below = histogram.cumsum(2) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(2, values), values).to(torch.uint8).reshape(images.shape)


OPERATIONS: dict[str, Operation] = {
    "identity": _identity,
    "shear_x": _shear_x,
    "shear_y": _upright(_shear_x),
    "translate_x": _translate_x,
    "translate_y": _upright(_translate_x),
    "rotate": _rotate,
    "brightness": _brightness,
    "colour": _colour,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
}
"""In the paper's order of families: geometry, then colour."""
