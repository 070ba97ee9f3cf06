"""Float32 that is float32: no shortcuts while a classifier is judged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Let convolutions and matrix products of float32 have all of its 24 bits for the length of the block.

    On a GPU PyTorch lets cuDNN round to the 11 bits of TF32 unless told otherwise, which decides verdicts on images
    close to a boundary, and lets a caller ask for the same, or less, in matrix products. The settings are the
    process's; afterwards they are as they were.
    """
    cudnn = torch.backends.cudnn
    convolutions, products = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
