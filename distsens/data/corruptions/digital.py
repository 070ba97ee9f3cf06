"""Changes of light, geometry, resolution and coding."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distsens.data.corruptions.family import Family
from distsens.data.corruptions.filters import gaussian_blur, sampled
from distsens.randomness import sample_keys, uniform


def _brightness(images: Tensor, _keys: Tensor, more: float) -> Tensor:
    """``more`` added to the value of (hue, saturation, value): all channels scaled alike, black becomes grey."""
    value = images.amax(1, keepdim=True)
    brighter = (value + more).clamp(max=1.0)
    return torch.where(value > 0.0, images * (brighter / value), brighter)


def _contrast(images: Tensor, _keys: Tensor, factor: float) -> Tensor:
    """Distances to each channel's mean over the image, times ``factor``."""
    means = images.mean((2, 3), keepdim=True)
    return means + factor * (images - means)


def _elastic_transform(images: Tensor, keys: Tensor, strength: float, deviation: float, corners: float) -> Tensor:
    """Stretched by a random affine map, then by a random smooth field (Simard et al., ICDAR 2003).

    Three corners of a square around the centre, 2/3 of the image wide, move by up to ``corners``; the field is uniform
    noise in [-1, 1], blurred by ``deviation``, times ``strength``. All three are parts of the image's shorter side.
    """
    count, _, height, width = images.shape
    side = min(height, width)
    centre = torch.tensor([width // 2, height // 2], dtype=torch.float64, device=images.device)
    square = side // 3 * torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=torch.float64, device=images.device)
    before = (centre + square).expand(count, 3, 2)
    after = before + corners * side * _signed(sample_keys(keys, "corners"), (3, 2))
    back = torch.linalg.solve(torch.cat([after, torch.ones_like(after[..., :1])], dim=2), before)
    rows, columns = (torch.arange(size, dtype=torch.float64, device=images.device) for size in (height, width))
    rows, columns = rows[:, None].expand(height, width), columns.expand(height, width)
    places = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1) @ back[:, None]
    field = (
        strength * side * gaussian_blur(_signed(sample_keys(keys, "field"), (2, height, width)), deviation * side, 3)
    )
    return sampled(sampled(images, places[..., 1], places[..., 0]), rows + field[:, 0], columns + field[:, 1])


def _signed(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform in [-1, 1)."""
    return 2.0 * uniform(keys, shape).double() - 1.0


def _pixelate(images: Tensor, _keys: Tensor, scale: float) -> Tensor:
    """Averaged down to ``scale`` of the size, and up again by repetition."""

    def coarse(image: Image.Image) -> Image.Image:
        smaller = int(image.width * scale), int(image.height * scale)
        return image.resize(smaller, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return _one_by_one(images, coarse)


def _jpeg_compression(images: Tensor, _keys: Tensor, quality: int) -> Tensor:
    """Written as JPEG of this quality and read again."""

    def compressed(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _one_by_one(images, compressed)


def _one_by_one(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Change each image as Pillow sees it."""
    greys = (255 * images).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    changed = torch.empty(greys.shape, dtype=torch.uint8)
    for row, grey in enumerate(greys):
        image = Image.fromarray(grey.squeeze(2) if grey.shape[2] == 1 else grey)
        changed[row] = torch.from_numpy(np.array(change(image)).reshape(grey.shape))
    return changed.permute(0, 3, 1, 2).to(images.device).double() / 255


_OF_224 = 244 / 224
"""ImageNet-C states the elastic transform in parts of 244 pixels, for images of 224."""

DIGITAL = {
    "brightness": Family(
        _brightness,
        small=((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
        large=((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    ),
    "contrast": Family(
        _contrast,
        small=((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
        large=((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    ),
    "elastic_transform": Family(
        _elastic_transform,
        small=((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        large=(
            (2 * _OF_224, 0.7 * _OF_224, 0.1 * _OF_224),
            (2 * _OF_224, 0.08 * _OF_224, 0.2 * _OF_224),
            (0.05 * _OF_224, 0.01 * _OF_224, 0.02 * _OF_224),
            (0.07 * _OF_224, 0.01 * _OF_224, 0.02 * _OF_224),
            (0.12 * _OF_224, 0.01 * _OF_224, 0.02 * _OF_224),
        ),
    ),
    "pixelate": Family(
        _pixelate,
        small=((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
        large=((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    ),
    "jpeg_compression": Family(
        _jpeg_compression,
        small=((80,), (65,), (58,), (50,), (40,)),
        large=((25,), (18,), (15,), (10,), (7,)),
    ),
}
