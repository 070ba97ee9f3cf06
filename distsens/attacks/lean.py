"""Cheaper forwards for the layers of a network that is frozen and in eval mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.modules import module as torch_module
from torch.nn.utils.fusion import fuse_conv_bn_weights

Forward = Callable[[Tensor], Tensor]
_Pairs = list[tuple[Any, Any]]
_Fused = dict[tuple[nn.Module, nn.Module], Mapping[str, Tensor | None]]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# Pairs of a network beside the modules that it had when it was traced: once they are others, it is traced anew.
_traced: WeakKeyDictionary[nn.Module, tuple[list[nn.Module], _Pairs]] = WeakKeyDictionary()

# A folded network whose logits are further than this from the plain ones, as a part of their size, folds wrongly.
_FOLDING_ERROR = 1e-2
_COMPARED_IMAGES = 2


def lean_forwards(
    network: nn.Module, images: Tensor, layout: torch.memory_format, precision: torch.dtype | None
) -> dict[nn.Module, Forward]:
    """Forwards by layer with which the network, as long as its weights stay, gives the same outputs sooner.

    A convolution whose output a batch norm reads, and nothing else, takes over the norm's scale and shift, and the
    norm hands on what it gets. Which ones these are is read off the network's code once; flags and state may lead a
    later forward elsewhere, so each time the logits of two of the images are compared with the plain ones. A network
    where they ever differ is folded no more. Convolutions and linear layers hold their weights in ``layout``, as the
    images are, and in ``precision`` if there is one, to which autocast would otherwise cast them in every forward.

    Only plain layers of ``torch.nn`` qualify. A network with hooks, which may read or change any layer, or with
    compiled parts is left as it is: no forwards.
    """
    if _is_watched(network):
        return {}
    fused = _fused_weights(network)
    forwards = _forwards_with(fused, network, layout, None if fused else precision)
    if not fused:
        return forwards
    if not _gives_the_same(network, forwards, images[:_COMPARED_IMAGES]):
        _traced[network] = (_modules(network), [])
        fused = {}
    elif precision is None:
        return forwards
    return _forwards_with(fused, network, layout, precision)


@contextmanager
def replaced(network: nn.Module, forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Let the network's layers run ``forwards`` inside the block, unless it has got hooks meanwhile."""
    layers = [] if _is_watched(network) else list(forwards)
    try:
        for layer in layers:
            vars(layer)["forward"] = forwards[layer]
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _fused_weights(network: nn.Module) -> _Fused:
    """Weight and bias of each convolution that can take over the norm behind it."""
    fused: _Fused = {}
    for convolution, norm in _conv_norm_pairs(network):
        # A norm may be kept in train mode, or have no statistics of its own, by a network's own doing.
        if norm.training or norm.running_mean is None or not _is_plain(convolution, _CONVOLUTIONS):
            continue
        weight, bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        fused[convolution, norm] = {"weight": weight, "bias": bias}
    return fused


def _forwards_with(
    fused: _Fused, network: nn.Module, layout: torch.memory_format, precision: torch.dtype | None
) -> dict[nn.Module, Forward]:
    forwards: dict[nn.Module, Forward] = {}
    for (convolution, norm), weights in fused.items():
        forwards[convolution] = _forward_with(weights, convolution, layout, precision)
        forwards[norm] = _hand_on
    for layer in network.modules():
        if layer not in forwards and _is_plain(layer, (*_CONVOLUTIONS, nn.Linear)):
            forwards[layer] = _forward_with(layer._parameters, layer, layout, precision)
    return forwards


@torch.no_grad()
def _gives_the_same(network: nn.Module, forwards: Mapping[nn.Module, Forward], images: Tensor) -> bool:
    """Whether the logits of these images are those of the network itself, up to rounding, in float32."""
    found: list[Tensor] = []
    for chosen in ({}, forwards):
        with replaced(network, chosen), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            try:
                found.append(network(images))
            except Exception:  # Whatever the network says to fewer images than there are.
                return False
    plain, lean = found
    if not (isinstance(plain, Tensor) and plain.is_floating_point()):
        return False
    return bool((lean - plain).abs().amax() <= _FOLDING_ERROR * plain.abs().amax())


def _is_watched(network: nn.Module) -> bool:
    """Whether something else has its hand in a forward: hooks, a compiler, one object's own forward."""
    return bool(torch_module._has_any_global_hook()) or any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in vars(module)
        for module in network.modules()
    )


def _is_plain(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """A layer of exactly one of these kinds (a subclass may do more) with float32 weights of its own."""
    if type(layer) not in kinds:
        return False
    weight = layer._parameters.get("weight")
    return weight is not None and weight.dtype is torch.float32


def _forward_with(
    weights: Mapping[str, Tensor | None],
    layer: nn.Module,
    layout: torch.memory_format,
    precision: torch.dtype | None,
) -> Forward:
    """The layer's forward with these weights: that of a twin which shares all the rest."""
    twin = copy(layer)
    twin._parameters = {
        name: None if one is None else nn.Parameter(_lean(one, layout, precision), requires_grad=False)
        for name, one in weights.items()
    }
    forward: Forward = twin.forward
    return forward


def _lean(weight: Tensor, layout: torch.memory_format, precision: torch.dtype | None) -> Tensor:
    return weight.detach().to(precision, memory_format=layout if weight.ndim == 4 else torch.preserve_format)


def _hand_on(outputs: Tensor) -> Tensor:
    return outputs


def _conv_norm_pairs(network: nn.Module) -> _Pairs:
    """Convolutions whose only reader is a batch norm, each with that norm; looked for once per network."""
    if network not in _traced or _traced[network][0] != _modules(network):
        _traced[network] = (_modules(network), _trace_pairs(network))
    return _traced[network][1]


def _modules(network: nn.Module) -> list[nn.Module]:
    """Its modules without the network itself, which an entry must not keep alive."""
    return list(network.modules())[1:]


def _trace_pairs(network: nn.Module) -> _Pairs:
    kinds = {type(module) for module in network.modules()}
    if kinds.isdisjoint(_CONVOLUTIONS) or kinds.isdisjoint(_NORMS):
        return []
    tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    try:
        # A copy (that shares the tensors), because a forward may keep what it sees, here stand-ins for tensors.
        # Checkpointing, which repeats parts of the forward in the backward pass, is refused: the parts would differ.
        traced = deepcopy(network, tensors)
        with disable_saved_tensors_hooks("a layer that runs again in the backward pass cannot be replaced"):
            nodes = fx.Tracer().trace(traced).nodes
        kept = {proxy.node for module in traced.modules() for proxy in _proxies(vars(module).values())}
    except Exception:  # Whatever a network's own code says to a stand-in: its order of layers is not proved.
        return []
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    pairs: _Pairs = []
    for node in nodes:
        reads = node.args[0] if node.op == "call_module" and node.args else None
        if not (isinstance(reads, fx.Node) and reads.op == "call_module" and len(reads.users) == 1):
            continue
        convolution, norm = network.get_submodule(str(reads.target)), network.get_submodule(str(node.target))
        once = calls[reads.target] == calls[node.target] == 1
        if once and reads not in kept and type(norm) in _NORMS:
            pairs.append((convolution, norm))
    return pairs


def _proxies(values: Iterable[object]) -> Iterator[fx.Proxy]:
    """What a traced forward has kept for later, in attributes, lists and dictionaries."""
    for value in values:
        if isinstance(value, fx.Proxy):
            yield value
        elif isinstance(value, Mapping):
            yield from _proxies(value.values())
        elif isinstance(value, list | tuple | set):
            yield from _proxies(value)
