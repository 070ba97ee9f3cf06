"""Reading neurons: forward hooks on chosen layers, for the length of a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from distsens.errors import InputError
from distsens.networks import as_written, in_eval_mode, in_own_type, unwrapped
from distsens.sensitivity.image_rows import ImageRows, images_of
from distsens.sensitivity.layers import AUTO, NOT_CALLED, match_layers
from distsens.sensitivity.neurons import as_neurons

T = TypeVar("T")


class ActivationProbe(Generic[T]):
    """Collects the outputs of chosen layers during forward passes.

    A neuron is a channel of a convolution's output, a unit of a linear layer's output or, for token models (N, T, C),
    a feature of C. Every output is read as (N, neurons, positions): (N, C, H, W) becomes (N, C, H*W), (N, C) becomes
    (N, C, 1) and (N, T, C) becomes (N, C, T). Where each image has several rows, one image's after another's, as in
    the windows of Swin's attention, they are positions too: (N*k, T, C) becomes (N, C, k*T). Layers whose output is
    in another order (sequences first, say) are refused; the first forward of a shape finds out, see :func:`survey`.

    Parameters
    ----------
    model : any module; a DDP or DataParallel wrapper is looked through. It is called with its images first.
    layers : names as in ``model.named_modules()``, globs over them (``"network.conv*"``), or ``"auto"``: every
        convolution and linear layer that the first forward calls exactly once, but those whose outputs are the logits.
    read : what to keep of each output, a function of (layer name, output as (N, neurons, positions)); by default a
        copy of the output, which an in-place activation after the layer would overwrite. Reading at once keeps memory
        flat, as whole activations need not be held.

    Attributes
    ----------
    layers : names; with ``"auto"`` known once a forward has been probed.
    outputs : what was kept of the last forward, by layer, in the order of the calls.

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
        self.outputs: dict[str, T] = {}
        self._wanted = layers
        named = [layers] if isinstance(layers, str) else list(layers)
        known = match_layers(model, [one for one in named if one != AUTO])
        self._layers = None if AUTO in named else known
        self._read = read
        self._rows = ImageRows()
        self._around = ExitStack()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        return match_layers(self.model, self._wanted) if self._layers is None else self._layers

    def __enter__(self) -> ActivationProbe[T]:
        self.outputs = {}
        self._rows.forget()
        self._around.enter_context(as_written(self.model))
        network = unwrapped(self.model)
        self._around.callback(network.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        self._watch(self._layers or ())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._around.close()
        if kind is None and (silent := [name for name in self.layers if name not in self.outputs]):
            raise InputError("layers", silent[0], NOT_CALLED)

    def _watch(self, layers: Sequence[str]) -> None:
        for name in layers:
            module = unwrapped(self.model).get_submodule(name)
            self._around.callback(module.register_forward_hook(self._hook(name)).remove)

    def _begin(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.outputs = {}
        images = images_of(args, kwargs)
        if self._layers is None:
            self._layers = match_layers(network, self._wanted, images)
            self._watch(self._layers)
        self._rows.begin(network, images, self._layers)

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001
            if name in self.outputs:
                raise InputError(
                    "layers", name, "the layer was called twice in one forward pass, so its neurons are ambiguous"
                )
            if not isinstance(output, Tensor):
                raise InputError("layers", name, f"its output is a {type(output).__name__}, not a tensor")
            neurons = as_neurons(module, output, self._rows.of(name, output))
            self.outputs[name] = self._read(name, neurons) if self._read else neurons.clone()  # type: ignore[assignment]

        return hook


def neuron_counts(
    model: nn.Module, layers: str | Sequence[str], example: Tensor, *, readable: bool = False
) -> dict[str, int]:
    """Number of neurons of each layer that the patterns mean, found by one forward of ``example`` in eval mode.

    They are in the order of the forward. ``readable`` as in :func:`match_layers`.
    """
    with in_eval_mode(model) as network, torch.no_grad():
        names = match_layers(network, layers, example, readable=readable)
        with ActivationProbe(network, names, read=lambda _, output: output.shape[1]) as probe:
            network(in_own_type(network, example))
        return probe.outputs


def split_pairs(outputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Benign and adversarial halves of the outputs of one forward over ``torch.cat([benign, adversarial])``."""
    halves = {name: output.chunk(2) for name, output in outputs.items()}
    return {name: half[0] for name, half in halves.items()}, {name: half[1] for name, half in halves.items()}
