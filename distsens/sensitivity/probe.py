"""Reading neurons: forward hooks on chosen layers, for the length of a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distsens.errors import InputError
from distsens.networks import as_written, in_eval_mode, program, unwrapped

T = TypeVar("T")

NOT_CALLED = "the layer was not called in the forward pass; name one that is"

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FEATURES_LAST = (nn.Linear, nn.Embedding)
_CHANNELS_FIRST = (*_CONVOLUTIONS, _BatchNorm)


class ActivationProbe(Generic[T]):
    """Collects the outputs of chosen layers during forward passes.

    A neuron is a channel of a convolution's output, a unit of a linear layer's output or, for token models (N, T, C),
    a feature of C. Every output is read as (N, neurons, positions): (N, C, H, W) becomes (N, C, H*W), (N, C) becomes
    (N, C, 1) and (N, T, C) becomes (N, C, T).

    Parameters
    ----------
    model : any module; a DDP or DataParallel wrapper is looked through.
    layers : names as in ``model.named_modules()``, globs over them (``"network.conv*"``), or ``"auto"``: every
        convolution and linear layer except the last linear one, whose outputs are the logits.
    read : what to keep of each output, a function of (layer name, output as (N, neurons, positions)); by default a
        copy of the output, which an in-place activation after the layer would overwrite. Reading at once keeps memory
        flat, as whole activations need not be held.

    Examples
    --------
    >>> probe = ActivationProbe(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), ["auto"])
    >>> with probe:
    ...     _ = probe.model(torch.zeros(5, 4))
    >>> {layer: tuple(output.shape) for layer, output in probe.outputs.items()}
    {'0': (5, 3, 1)}
    """

    def __init__(
        self, model: nn.Module, layers: str | Sequence[str] = "auto", read: Callable[[str, Tensor], T] | None = None
    ) -> None:
        self.model = model
        self.layers = match_layers(model, layers)
        self.outputs: dict[str, T] = {}
        self._read = read
        self._around = ExitStack()

    def __enter__(self) -> ActivationProbe[T]:
        self.outputs = {}
        network = unwrapped(self.model)
        self._around.enter_context(as_written(self.model))
        self._around.callback(network.register_forward_pre_hook(self._forget).remove)
        for name in self.layers:
            self._around.callback(network.get_submodule(name).register_forward_hook(self._hook(name)).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._around.close()
        if kind is None and (silent := [name for name in self.layers if name not in self.outputs]):
            raise InputError("layers", silent[0], NOT_CALLED)

    def _forget(self, module: nn.Module, inputs: object) -> None:  # noqa: ARG002 (the signature of a hook)
        self.outputs = {}

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001
            if name in self.outputs:
                raise InputError(
                    "layers", name, "the layer was called twice in one forward pass, so its neurons are ambiguous"
                )
            if not isinstance(output, Tensor):
                raise InputError("layers", name, f"its output is a {type(output).__name__}, not a tensor")
            neurons = as_neurons(module, output)
            self.outputs[name] = self._read(name, neurons) if self._read else neurons.clone()  # type: ignore[assignment]

        return hook


def match_layers(model: nn.Module, patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the layers that the patterns mean, in the model's order, each once; an unmatched pattern is an error."""
    network = unwrapped(model)
    if kind := program(network):
        raise InputError("model", kind, "it calls no layers that could be read; give the network itself")
    names = [name for name, _ in network.named_modules() if name]
    known = set(names)
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if pattern == "auto":
            found = set(_auto(network))
        else:  # a whole name needs no search: every training step comes here with them
            found = {pattern} if pattern in known else {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            examples = ", ".join((_auto(network) or names)[:8])
            raise InputError(
                "layers", pattern, f'it matches no layer; allowed are "auto", names and globs, e.g. {examples}'
            )
        chosen |= found
    return tuple(name for name in names if name in chosen)


def neuron_counts(model: nn.Module, layers: str | Sequence[str], example: Tensor) -> dict[str, int]:
    """Number of neurons of each layer that the patterns mean, found by one forward of ``example`` in eval mode."""
    network = unwrapped(model)
    with in_eval_mode(network):
        with ActivationProbe(network, layers, read=lambda _, output: output.shape[1]) as probe, torch.no_grad():
            network(example)
        return {name: probe.outputs[name] for name in probe.layers}


def as_neurons(module: nn.Module, output: Tensor) -> Tensor:
    """View a layer's output as (N, neurons, positions), by the kind of layer and, failing that, by its dimensions."""
    if output.ndim < 2:
        raise InputError(
            "layers", type(module).__name__, f"its output has shape {tuple(output.shape)}, not (N, C, ...)"
        )
    output = output.movedim(neuron_axis(module, output), 1)
    return output.flatten(2) if output.ndim > 2 else output.unsqueeze(2)


def neuron_axis(module: nn.Module, output: Tensor) -> int:
    """The dimension of a layer's output along which its neurons lie."""
    features_last = (
        isinstance(module, _FEATURES_LAST)
        or type(module) is nn.LayerNorm  # not its subclasses: torchvision's LayerNorm2d gives (N, C, H, W)
        or (output.ndim == 3 and not isinstance(module, _CHANNELS_FIRST))
    )
    return output.ndim - 1 if features_last else 1


def split_pairs(outputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Benign and adversarial halves of the outputs of one forward over ``torch.cat([benign, adversarial])``."""
    halves = {name: output.chunk(2) for name, output in outputs.items()}
    return {name: half[0] for name, half in halves.items()}, {name: half[1] for name, half in halves.items()}


def _auto(network: nn.Module) -> list[str]:
    """Convolutions and linear layers but the logits; attention calls its projections without their forward."""
    found = list(_weighted(network))
    last = next((name for name, module in reversed(found) if isinstance(module, nn.Linear)), None)
    return [name for name, _ in found if name != last]


def _weighted(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in network.named_children():
        if isinstance(child, nn.MultiheadAttention):
            continue
        if isinstance(child, (*_CONVOLUTIONS, nn.Linear)):
            yield prefix + name, child
        yield from _weighted(child, f"{prefix}{name}.")
