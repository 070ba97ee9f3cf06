"""Batch normalisation in a forward over benign images and their adversarial twins: which statistics each half sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distsens.errors import InputError
from distsens.training.sync_batch_norm import shares_statistics

BatchNormHalves = Literal["joint", "separate", "adversarial", "benign"]
"""How the two halves of a training forward are normalised.

``"joint"`` : both by the statistics of all images together, which also enter the running statistics. The default: x and
    x' are then mapped by the same function, so what a neuron says differently about them is due to the images.
``"separate"`` : each by its own, and the running statistics take in first the benign, then the adversarial ones; as in
    the published code of TRADES and MART, which forwards the halves one after the other.
``"adversarial"``, ``"benign"`` : each by its own, and the running statistics, with which the network is attacked and
    tested, take in those of that half alone.
"""


@contextmanager
def normalising_halves(model: nn.Module, boundary: int, count: int, how: BatchNormHalves) -> Iterator[None]:
    """Let every batch-norm layer that is in training mode treat rows before and after ``boundary`` as ``how`` says.

    The layers' parameters, buffers and hooks stay what they are; afterwards, also after an exception, their forward is
    the old one. An empty half is passed on as it is, except in layers that share statistics between workers: others may
    have images in it.

    Parameters
    ----------
    boundary, count : rows of the benign half, and of both; every layer has to see its input image by image.
    """
    if how == "joint":
        yield
        return
    with ExitStack() as restored:
        for layer in _training_layers(model):
            layer.forward = _by_halves(layer, boundary, count, how)  # type: ignore[method-assign, assignment]
            restored.callback(layer.__dict__.__delitem__, "forward")
        yield


@contextmanager
def keeping_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of every batch-norm layer alone, whatever is forwarded in training mode."""
    with ExitStack() as restored:
        for layer in _training_layers(model):
            restored.enter_context(_tracking(layer, False))
        yield


def _training_layers(model: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]


def _by_halves(layer: _BatchNorm, boundary: int, count: int, how: BatchNormHalves) -> Callable[[Tensor], Tensor]:
    whole = layer.forward
    shared = shares_statistics(layer)

    def forward(inputs: Tensor) -> Tensor:
        if len(inputs) != count:
            raise InputError(
                "training.batch_norm", how, f"joint: a layer normalises {len(inputs)} rows made of {count} images"
            )
        outputs = []
        for half, rows in (("benign", inputs[:boundary]), ("adversarial", inputs[boundary:])):
            with _tracking(layer, how in ("separate", half)):
                outputs.append(whole(rows) if len(rows) or shared else rows)
        return torch.cat(outputs)

    return forward


@contextmanager
def _tracking(layer: _BatchNorm, wanted: bool) -> Iterator[None]:
    """Update the layer's running statistics only if that is wanted (and was so before)."""
    before = layer.track_running_stats
    layer.track_running_stats = before and wanted
    try:
        yield
    finally:
        layer.track_running_stats = before
