"""What a classifier computes, in few numbers: whether two are the same, whatever files and factories are called."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distsens.models import PixelModel
from distsens.precision import full_float32

_IMAGES = 4
# Of the range of the logits. In float32 two machines, or two layouts on one, differ by about 1e-6 of it (torchvision's
# ResNets, DenseNet and Swin against float64); another activation or padding moves them by far more than this.
_TOLERANCE = 1e-4

Logits = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Fingerprint:
    """What is computed, and by which values.

    weights_sha256 : of the values of all weights and statistics, whatever they are called and of which float type.
    logits : of fixed images, a row each; None for one that is not finite.
    """

    weights_sha256: str
    logits: Logits

    def agrees(self, other: Fingerprint) -> bool:
        """Whether both compute the same, up to rounding."""
        return self.difference(other) <= _TOLERANCE

    def difference(self, other: Fingerprint) -> float:
        """The largest difference of a logit, as a part of the range of this one's; infinite where there is none."""
        mine, others = ([value for row in one.logits for value in row] for one in (self, other))
        if [len(row) for row in self.logits] != [len(row) for row in other.logits]:
            return math.inf
        if any((a is None) != (b is None) for a, b in zip(mine, others, strict=True)):
            return math.inf
        pairs = [(a, b) for a, b in zip(mine, others, strict=True) if a is not None and b is not None]
        largest = max((abs(a - b) for a, b in pairs), default=0.0)
        values = [a for a, _ in pairs]
        # All logits may be equal, and large.
        extent = max(max(values) - min(values), 1e-3 * max(map(abs, values))) if values else 0.0
        return 0.0 if largest == 0.0 else largest / extent if extent > 0.0 else math.inf


@full_float32()
def fingerprint(model: PixelModel, shape: tuple[int, int, int]) -> Fingerprint:
    """Take a classifier's fingerprint.

    Parameters
    ----------
    model : on the CPU, in eval mode.
    shape : (C, H, W) of one image.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of a model that is random itself
        logits = model(fixed_images(shape)).double().tolist()
    rows = tuple(tuple(float(f"{x:.9g}") if math.isfinite(x) else None for x in row) for row in logits)
    return Fingerprint(_digest_of_values(model.network.state_dict()), rows)


def fixed_images(shape: tuple[int, int, int]) -> Tensor:
    """Images (4, C, H, W) in [0, 1] that are the same everywhere: random squares of one, two, four and eight pixels."""
    channels, height, width = shape
    images = []
    for number in range(_IMAGES):
        side = 2**number
        rows, columns = -(-height // side), -(-width // side)
        key = f"distsens {number} {channels} {height} {width}".encode()
        content = bytearray(hashlib.shake_256(key).digest(channels * rows * columns))
        squares = torch.frombuffer(content, dtype=torch.uint8).reshape(channels, rows, columns)
        images.append(squares.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :height, :width])
    return torch.stack(images).float() / 255.0


def _digest_of_values(state: dict[str, Tensor]) -> str:
    """SHA-256 of the float tensors as a set: files name and order them differently, and tie some of them."""
    parts = set()
    for value in state.values():
        if isinstance(value, Tensor) and value.is_floating_point():
            content = value.detach().cpu().double().contiguous().numpy().astype("<f8").tobytes()
            parts.add(hashlib.sha256(f"{tuple(value.shape)} ".encode() + content).hexdigest())
    return hashlib.sha256(" ".join(sorted(parts)).encode()).hexdigest()
