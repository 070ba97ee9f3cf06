"""Augmentation of a batch on its device, with randomness that belongs to the sample.

What happens to an image depends on its key alone, not on its batch, its worker or PyTorch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from distsens.data.trivial_augment import trivial_augment
from distsens.errors import InputError
from distsens.randomness import sample_keys, uniform

_TOLERANCE = 1e-6
"""By rounding."""


def to_pixels(images: Tensor, field: str = "images") -> Tensor:
    """Images as float32 pixels in [0, 1]: uint8 is divided by 255, floating-point numbers in [0, 1] are kept.

    Raises
    ------
    InputError
        The images, which the message calls ``field``, are of another type or not in [0, 1].
    """
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    if not images.is_floating_point():
        allowed = "must be uint8, or floating-point numbers in [0, 1]"
        raise InputError(field, str(images.dtype).removeprefix("torch."), allowed)
    if images.numel():
        lowest, highest = (bound.item() for bound in torch.aminmax(images))
        if not (lowest >= -_TOLERANCE and highest <= 1.0 + _TOLERANCE):  # nor NaN
            allowed = "floating-point pixels must lie in [0, 1]: divide by 255, and normalise inside the model"
            raise InputError(field, (lowest, highest), allowed)
    return images.to(torch.float32)


def crop(images: Tensor, keys: Tensor) -> Tensor:
    """Random crop to the same size after padding every side with H // 8 zeros: 4 for 32x32, 1 for 8x8.

    Parameters
    ----------
    images : uint8 tensor (N, C, H, W).
    keys : int64 tensor (N,), one key per image; every offset is equally likely.
    """
    count, channels, height, width = images.shape
    pad = height // 8
    padded = F.pad(images, (pad, pad, pad, pad))
    offsets = (uniform(keys, (2,)) * (2 * pad + 1)).to(torch.int64)

    def positions(size: int) -> Tensor:
        return torch.arange(size, device=images.device)

    rows = offsets[:, :1] + positions(height)
    columns = offsets[:, 1:] + positions(width)
    return padded[
        positions(count)[:, None, None, None],
        positions(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def flip(images: Tensor, keys: Tensor) -> Tensor:
    """Mirror left and right with probability one half; arguments as for `crop`."""
    mirrored = uniform(keys, (1, 1, 1)) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


def cutout(images: Tensor, keys: Tensor) -> Tensor:
    """Black out one square of side H // 2 around a random pixel (DeVries and Taylor 2017); arguments as for `crop`.

    Every pixel is equally likely, so part of the square may lie outside. On CIFAR-10 the paper's best side is 16 of 32.
    """
    _, _, height, width = images.shape
    side = height // 2
    first = (uniform(keys, (2,)) * torch.tensor([height, width], device=keys.device)).to(torch.int64) - side // 2

    def covered(first: Tensor, size: int) -> Tensor:
        positions = torch.arange(size, device=images.device)
        return (positions >= first[:, None]) & (positions < first[:, None] + side)

    hidden = covered(first[:, 0], height)[:, None, :, None] & covered(first[:, 1], width)[:, None, None, :]
    return images.masked_fill(hidden, 0)


AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "crop": crop,
    "flip": flip,
    "cutout": cutout,
    "trivial_augment": trivial_augment,
}


def augment(images: Tensor, names: Sequence[str], keys: Tensor) -> Tensor:
    """Apply augmentations in the order of their names.

    Parameters
    ----------
    images : uint8 tensor (N, C, H, W), left as it is.
    names : some of ``AUGMENTATIONS``; none returns the images themselves.
    keys : int64 tensor (N,) on the images' device, one key per sample and epoch. Each augmentation derives its own
        from them by name, so that adding one does not change what the others do.

    Returns
    -------
    uint8 tensor (N, C, H, W).

    Raises
    ------
    InputError
        If a name is unknown.
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise InputError("data.augment", name, f"must be one of {', '.join(AUGMENTATIONS)}")
        images = AUGMENTATIONS[name](images, sample_keys(keys, name))
    return images
