"""Where the neurons are in a layer's output: from the layer's own shape to (N, neurons, positions) and back."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distsens.errors import InputError

_FEATURES_LAST = (nn.Linear, nn.Embedding)
_CHANNELS_FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, _BatchNorm)


def as_neurons(module: nn.Module, output: Tensor, rows: int = 1) -> Tensor:
    """A layer's output as (N, neurons, positions), by the kind of layer and, failing that, by its dimensions.

    ``rows`` entries of the first dimension, one after the other, belong to each image, as windows of attention do:
    they become positions.
    """
    if output.ndim < 2:
        raise InputError(
            "layers", type(module).__name__, f"its output has shape {tuple(output.shape)}, not (N, C, ...)"
        )
    output = output.movedim(neuron_axis(module, output), 1)
    if rows > 1:
        output = output.unflatten(0, (len(output) // rows, rows)).movedim(1, 2)
    return output.flatten(2) if output.ndim > 2 else output.unsqueeze(2)


def as_output(module: nn.Module, values: Tensor, output: Tensor, rows: int = 1) -> Tensor:
    """Values (N, k, positions) of k neurons, laid out as they are in a layer's ``output``: the way back."""
    axis = neuron_axis(module, output)
    places = [size for dimension, size in enumerate(output.shape) if dimension not in (0, axis)]
    values = values.unflatten(2, (rows, *places))
    return values.movedim(2, 1).flatten(0, 1).movedim(1, axis)


def neuron_axis(module: nn.Module, output: Tensor) -> int:
    """The dimension of a layer's output along which its neurons lie."""
    features_last = (
        isinstance(module, _FEATURES_LAST)
        or type(module) is nn.LayerNorm  # not its subclasses: torchvision's LayerNorm2d gives (N, C, H, W)
        or (output.ndim == 3 and not isinstance(module, _CHANNELS_FIRST))
    )
    return output.ndim - 1 if features_last else 1
