"""Corrupt images as CIFAR-10-C and ImageNet-C do."""

from __future__ import annotations

import torch
from torch import Tensor

from distsens.data.corruptions.blur import BLUR
from distsens.data.corruptions.digital import DIGITAL
from distsens.data.corruptions.family import Family
from distsens.data.corruptions.noise import NOISE
from distsens.data.corruptions.weather import WEATHER
from distsens.errors import InputError
from distsens.randomness import sample_keys

CORRUPTIONS: dict[str, Family] = {**NOISE, **BLUR, **WEATHER, **DIGITAL}
"""In the paper's order: noise, blur, weather, digital."""

SEVERITIES = (1, 2, 3, 4, 5)

SHORTEST = 8
"""Pixels that each side of an image must have at the least."""

_VALUES_AT_ONCE = 2**20


def corrupt(images: Tensor, family: str, severity: int, keys: Tensor) -> Tensor:
    """The images after one common corruption (Hendrycks and Dietterich, ICLR 2019).

    The 15 families of CIFAR-10-C and ImageNet-C with their published parameters: CIFAR-10-C's for images up to 64
    pixels a side, ImageNet-C's for larger ones. Two things differ from the published files: values are rounded to the
    nearest of the 256 levels, not down; and ``frost`` has drawn ice crystals in place of photographs, so that **results
    on frost, and means that include it, do not compare with published ones**.

    A severity is a choice of parameters, not an order of distances. For small images ``motion_blur`` is the same at 3
    and 4, ``glass_blur`` is nearer to the clean image at 3 than at 2 and at 5 than at 4, ``frost`` at 4 than at 3, and
    ``elastic_transform`` moves the whole image less and bends it more.

    Parameters
    ----------
    images : uint8 tensor (N, C, H, W), with one channel or three (red, green, blue), 8 pixels a side or more; left as
        it is.
    family : one of ``CORRUPTIONS``.
    severity : 1 to 5.
    keys : int64 tensor (N,) on the images' device, one key per image: image i depends on ``keys[i]`` alone. Each family
        derives its own keys from them by name; the severities of a family share their random numbers.

    Returns
    -------
    uint8 tensor (N, C, H, W).

    Raises
    ------
    InputError : the family or severity is unknown, the images are not of this kind, or there is not one key for each.
    """
    if family not in CORRUPTIONS:
        raise InputError("corruption.family", family, f"must be one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise InputError("corruption.severity", severity, "must be 1, 2, 3, 4 or 5")
    shape = tuple(images.shape)
    if images.dtype != torch.uint8:
        raise InputError("corruption.images", images.dtype, "must be torch.uint8")
    if images.ndim != 4 or shape[1] not in (1, 3) or min(shape[2:]) < SHORTEST:
        allowed = f"must be (N, C, H, W), C being 1 or 3 and H and W {SHORTEST} or more"
        raise InputError("corruption.images", shape, allowed)
    if keys.shape != images.shape[:1]:
        raise InputError("corruption.keys", tuple(keys.shape), f"must be ({shape[0]},), one key per image")
    keys = sample_keys(keys, family)
    rows = max(1, _VALUES_AT_ONCE // images.shape[1:].numel())
    result = torch.empty_like(images)
    for start in range(0, len(images), rows):
        some = slice(start, start + rows)
        pixels = CORRUPTIONS[family](images[some].double() / 255, keys[some], severity)
        # Halves are rounded up, a little early: otherwise rounding errors would decide.
        result[some] = (255 * pixels.clamp(0.0, 1.0) + (0.5 + 1e-6)).to(torch.uint8)
    return result
