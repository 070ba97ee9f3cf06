"""Float32 that is float32: no shortcuts while a classifier is judged or measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

_BACKENDS: Any = torch.backends
# Each has `fp32_precision`; what is "none" follows a setting for all of a library, or for all libraries.
_OPERATIONS = (
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
    _BACKENDS.mkldnn.rnn,
)


@contextmanager
def full_float32() -> Iterator[None]:
    """Let convolutions and matrix products of float32 have all of its 24 bits for the length of the block.

    On a GPU PyTorch lets cuDNN round to the 11 bits of TF32 unless told otherwise, which decides verdicts on images
    close to a boundary, and lets a caller ask for the same, or less, in matrix products, on a CPU as well. The settings
    are the process's; afterwards they are as they were.

    PyTorch has two sets of names for them, ``allow_tf32`` and ``fp32_precision``, and refuses to tell by the older what
    was set by the newer. Both are set, so that whoever asks inside the block is answered by either.
    """
    before = [operation.fp32_precision for operation in _OPERATIONS]
    convolutions = products = None
    with suppress(RuntimeError):  # set by the newer names alone
        convolutions = _BACKENDS.cudnn.allow_tf32
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    _set_older(convolutions=False, products="highest")
    for operation in _OPERATIONS:
        operation.fp32_precision = "ieee"
    try:
        yield
    finally:
        _set_older(convolutions, products)
        for operation, precision in zip(_OPERATIONS, before, strict=True):
            if operation.fp32_precision != precision:
                operation.fp32_precision = "none"
            if operation.fp32_precision != precision:
                operation.fp32_precision = precision


def _set_older(convolutions: bool | None, products: str | None) -> None:
    if convolutions is not None:
        _BACKENDS.cudnn.allow_tf32 = convolutions
    if products is not None:
        torch.set_float32_matmul_precision(products)
