"""Blur: out of focus, behind frosted glass, of a moving camera, of a camera that moves towards its object."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distsens.data.corruptions.family import Family
from distsens.data.corruptions.filters import gaussian_blur, mirrored, motion_blur, zoomed
from distsens.randomness import sample_keys, uniform


def _defocus_blur(images: Tensor, _keys: Tensor, radius: float, deviation: float) -> Tensor:
    """Convolution with a disk whose edge is smoothed by a Gaussian, 3 pixels wide (5 beyond radius 8)."""
    smooth = 2 if radius > 8 else 1
    reach = int(radius) + smooth
    taps = torch.arange(-reach, reach + 1, dtype=torch.float64, device=images.device)
    disk = (taps[:, None] ** 2 + taps**2 <= radius**2).double()
    edge = torch.exp(-0.5 * ((taps[:, None] - taps) / deviation) ** 2) * ((taps[:, None] - taps).abs() <= smooth)
    kernel = edge @ disk @ edge
    # The Fourier transform convolves circularly; the mirrored border of ``reach`` pixels takes up what wraps around.
    rows, columns = (
        mirrored(torch.arange(-reach, size + reach, device=images.device), size) for size in images.shape[2:]
    )
    padded = images[:, :, rows][..., columns]
    sizes = padded.shape[2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel / kernel.sum(), s=sizes)
    convolved: Tensor = torch.fft.irfft2(spectrum, s=sizes)
    return convolved[:, :, 2 * reach :, 2 * reach :]


def _glass_blur(images: Tensor, keys: Tensor, deviation: float, reach: int, rounds: int) -> Tensor:
    """Blurred by a Gaussian before and after every pixel takes the colour of one near it, ``rounds`` times.

    The paper says that pixels are shuffled; in the published images they are copied one after the other, as here.
    """
    size = images.shape[2:]
    blurred = gaussian_blur(images, deviation, reach=4)
    for number in range(rounds):
        steps = (2 * reach * uniform(sample_keys(keys, number), (2, *size))).long() - reach
        blurred = shattered(blurred, steps, reach)
    return gaussian_blur(blurred, deviation, reach=4)


def shattered(images: Tensor, steps: Tensor, reach: int) -> Tensor:
    """Each inner pixel, last to first, takes the value that another pixel then has.

    Parameters
    ----------
    images : (N, C, H, W).
    steps : int64 (N, 2, H, W), how many rows and columns away the other one is: ``-reach .. reach - 1``.
    reach : pixels in rows and columns ``0 .. reach`` and beyond ``H - reach``, ``W - reach`` stay.
    """
    _, channels, height, width = images.shape
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    inner = ((rows > reach) & (rows <= height - reach))[:, None] & ((columns > reach) & (columns <= width - reach))
    here = torch.arange(height * width, device=images.device)
    source = torch.where(inner.flatten(), here + (steps[:, 0] * width + steps[:, 1]).flatten(1), here)
    # A pixel that came earlier already shows another one's value: follow the chains, doubling the stride.
    chained = inner.flatten()[source] & (source > here)
    while chained.any():
        source, chained = torch.where(chained, source.gather(1, source), source), chained & chained.gather(1, source)
    return images.flatten(2).gather(2, source[:, None].expand(-1, channels, -1)).reshape(images.shape)


def _motion_blur(images: Tensor, keys: Tensor, radius: float, deviation: float) -> Tensor:
    """Along a direction up to 45 degrees from the horizontal."""
    angles = math.pi / 2 * (uniform(keys, ()).double() - 0.5)
    return motion_blur(images, angles, radius, deviation)


def _zoom_blur(images: Tensor, _keys: Tensor, step: float, count: int) -> Tensor:
    """The mean of the image and of ``count`` images of it enlarged by 1, 1 + step, 1 + 2 step, ..."""
    enlarged = sum((zoomed(images, 1 + step * number) for number in range(count)), images)
    return enlarged / (count + 1)


BLUR = {
    "defocus_blur": Family(
        _defocus_blur,
        small=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        large=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": Family(
        _glass_blur,
        small=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        large=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": Family(
        _motion_blur,
        small=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        large=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": Family(
        _zoom_blur,
        small=((0.01, 7), (0.01, 12), (0.01, 16), (0.01, 21), (0.01, 26)),
        large=((0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11)),
    ),
}
