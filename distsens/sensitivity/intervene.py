"""Overwrite neurons during a forward pass, for the length of a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from distsens.errors import InputError
from distsens.networks import as_written, unwrapped
from distsens.sensitivity.image_rows import ImageRows, images_of
from distsens.sensitivity.layers import NOT_CALLED, match_layers
from distsens.sensitivity.neurons import as_neurons, as_output, neuron_axis


@dataclass(frozen=True)
class Overwriting:
    """What becomes of one layer's neurons.

    neurons : (k,) their numbers.
    values : what they say instead, (n, k, positions), where n is 1 or the number of images, and positions may be 1.
    """

    neurons: Tensor
    values: Tensor


class Intervention:
    """Makes chosen neurons say something else; all other neurons of their layers are computed as ever.

    In terms of causal mediation analysis (Vig et al., "Investigating Gender Bias in Language Models Using Causal
    Mediation Analysis", NeurIPS 2020) it sets mediators: benign values set in the adversarial forward remove what
    the attack did through these neurons, adversarial values set in the benign forward keep nothing else of it.

    Parameters
    ----------
    model : any module; a DDP or DataParallel wrapper is looked through.
    layers : by name; see :class:`Overwriting`. Gradients flow into the values and past the other neurons.

    Examples
    --------
    >>> model = nn.Sequential(nn.Identity(), nn.Flatten())
    >>> with Intervention(model, {"0": Overwriting(torch.tensor([1]), torch.zeros(1, 1, 1))}):
    ...     model(torch.ones(1, 3)).tolist()
    [[1.0, 0.0, 1.0]]
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Overwriting]) -> None:
        self._model = model
        self._layers = {name: layers[name] for name in match_layers(model, list(layers))} if layers else {}
        self._silent: set[str] = set()
        self._rows = ImageRows()
        self._around = ExitStack()

    def __enter__(self) -> Intervention:
        self._silent = set(self._layers)
        self._rows.forget()
        self._around.enter_context(as_written(self._model))
        network = unwrapped(self._model)
        self._around.callback(network.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        for name, overwriting in self._layers.items():
            module = network.get_submodule(name)
            self._around.callback(module.register_forward_hook(self._hook(name, overwriting)).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._around.close()
        if kind is None and self._silent:
            raise InputError("layers", min(self._silent), NOT_CALLED)

    def _begin(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._rows.begin(network, images_of(args, kwargs), list(self._layers))

    def _hook(self, name: str, overwriting: Overwriting) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:  # noqa: ARG001
            self._silent.discard(name)
            if len(overwriting.neurons) == 0:
                return None
            return _overwritten(module, output, overwriting, self._rows.of(name, output))

        return hook


def _overwritten(module: nn.Module, output: Tensor, overwriting: Overwriting, rows: int) -> Tensor:
    shape = as_neurons(module, output, rows).shape
    wanted = overwriting.values.to(output).expand(shape[0], len(overwriting.neurons), shape[2])
    wanted = as_output(module, wanted, output, rows)
    return output.index_copy(neuron_axis(module, output), overwriting.neurons.to(output.device), wanted)


def take_neurons(outputs: Mapping[str, Tensor], neurons: Mapping[str, Tensor]) -> dict[str, Overwriting]:
    """Overwrite these neurons of each layer by what they say in ``outputs``, (N, neurons, positions) each."""
    return {layer: Overwriting(chosen, outputs[layer][:, chosen]) for layer, chosen in neurons.items()}


def constant_neurons(values: Mapping[str, Tensor], neurons: Mapping[str, Tensor]) -> dict[str, Overwriting]:
    """Overwrite these neurons of each layer by one number each, out of (neurons,) of the layer."""
    return {
        layer: Overwriting(chosen, values[layer][chosen].to(torch.get_default_dtype())[None, :, None])
        for layer, chosen in neurons.items()
    }
