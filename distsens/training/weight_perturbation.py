"""Adversarial weight perturbation (AWP): the loss at the worst weights nearby, not only on the worst images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_TINY = 1e-30


@contextmanager
def perturbed_weights(model: nn.Module, gamma: float) -> Iterator[None]:
    """Move every weight tensor w up its gradient g by a part of its own length: ``w + gamma * ||w|| / ||g|| * g``.

    Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020, equations 8 and 10
    with one step, layer by layer. Gradients are those in ``.grad``; tensors of one dimension, as biases and the
    parameters of batch norm, stay, and so do those whose gradient is zero. Afterwards, also after an exception, the
    weights are what they were, bit by bit.
    """
    weights = [w for w in model.parameters() if w.ndim > 1 and w.grad is not None]
    before = [w.detach().clone() for w in weights]
    try:
        with torch.no_grad():
            for w in weights:
                assert w.grad is not None
                length = torch.linalg.vector_norm(w) / torch.linalg.vector_norm(w.grad).clamp(min=_TINY)
                w.add_(gamma * length * w.grad)
        yield
    finally:
        with torch.no_grad():
            for w, unperturbed in zip(weights, before, strict=True):
                w.copy_(unperturbed)
