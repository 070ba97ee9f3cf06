"""Random numbers that belong to a sample, not to a process.

A number drawn here depends on its key and its position alone, never on the rank, the batch, the device or PyTorch's
global generator. That is what makes one worker and eight train on the same random starts and augmentations, and a
resumed run repeat the one it continues. The generator is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) used as a
counter-based hash.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts signed integers arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def sample_keys(samples: Tensor, *context: int | str) -> Tensor:
    """One key per sample from the sample's number and where it is used.

    Parameters
    ----------
    samples : (N,) integer tensor, the samples' numbers in their data set.
    context : what else the numbers depend on, e.g. ``seed, epoch, "attack"``. Order matters; integers are taken modulo
        2**62.

    Returns
    -------
    (N,) int64 tensor on the device of ``samples``.
    """
    keys = _mix(samples.to(torch.int64) + _GOLDEN)
    for part in context:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        keys = _mix(keys + _GOLDEN * (2 * number + 1) % 2**63)
    return keys


def uniform(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform float32 numbers in [0, 1): row i of the (N, *shape) result depends on ``keys[i]`` alone."""
    count = math.prod(shape)
    positions = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64) * _GOLDEN
    bits = _shift_right(_mix(keys[:, None] + positions), 40)
    return (bits.to(torch.float32) * 2.0**-24).reshape(len(keys), *shape)


def normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 numbers by Box and Muller's transform; row i depends on ``keys[i]`` alone."""
    u = uniform(keys, (2, *shape))
    radius = torch.sqrt(-2.0 * torch.log1p(-u[:, 0]))
    return radius * torch.cos(2.0 * math.pi * u[:, 1])
