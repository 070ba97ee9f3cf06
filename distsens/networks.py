"""What every room must know of a network that somebody else wrote: its wrappers, its modes, its memory format."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel

M = TypeVar("M", bound=nn.Module)

_formats: WeakKeyDictionary[nn.Module, torch.memory_format] = WeakKeyDictionary()

_TRIED_IMAGES = 2  # Batch norm refuses a single value per channel in training mode.


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside any nesting of DDP, DataParallel and ``torch.compile``."""
    while isinstance(model, DistributedDataParallel | DataParallel | OptimizedModule):
        model = model._orig_mod if isinstance(model, OptimizedModule) else model.module
    return model


def undistributed(model: nn.Module) -> nn.Module:
    """The network without DDP and DataParallel, still compiled if it is compiled itself."""
    while isinstance(model, DistributedDataParallel | DataParallel):
        model = model.module
    distributed = any(isinstance(module, DistributedDataParallel | DataParallel) for module in model.modules())
    return unwrapped(model) if distributed else model


def evaluate(network: nn.Module) -> None:
    """Put the network in eval mode; an exported program refuses to be put in any, and has but one."""
    try:
        network.eval()
    except NotImplementedError:
        for module in network.modules():
            module.training = False


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The network without its wrappers, in eval mode for the length of the block; then its modes are as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        evaluate(model)
        yield unwrapped(model)
    finally:
        for module, training in modes:
            module.training = training


def program(network: nn.Module) -> str | None:
    """What kind of program the network is, of which the code is a graph and no longer Python's; None if it is none."""
    if isinstance(network, torch.jit.ScriptModule):
        return "a TorchScript program"
    if not isinstance(network, fx.GraphModule):
        return None
    # A graph that was traced by torch.fx calls its modules still; an exported one contains what they did.
    called = [network.get_submodule(str(node.target)) for node in network.graph.nodes if node.op == "call_module"]
    return None if any(not type(one).__module__.startswith("torch.export") for one in called) else "an exported program"


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Let compiled parts of the model run as they were written, hooks and all, inside the block."""
    if any(isinstance(module, OptimizedModule) or module._compiled_call_impl for module in model.modules()):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


@contextmanager
def keeping_buffers(network: nn.Module) -> Iterator[None]:
    """Restore every buffer after the block: a network may update some of them in eval mode, too."""
    kept = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in network.modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for name, buffer in module._buffers.items()
        if buffer is None or not buffer.is_inference()  # Inference tensors cannot be written to.
    ]
    try:
        yield
    finally:
        for module, name, buffer, before in kept:
            module._buffers[name] = buffer
            if buffer is not None and before is not None:
                # All, as batch norm's kernels count no version by which a change would show. By data, which counts
                # none either, because a forward before the block may need them in its backward pass.
                buffer.data.copy_(before)


def in_own_type(network: nn.Module, images: Tensor) -> Tensor:
    """The images in the type of the network's weights, where all of them have the same; numbers of words stay such."""
    if not images.is_floating_point():
        return images
    types = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    return images.to(types.pop()) if len(types) == 1 else images


def laid_out(model: M, shape: tuple[int, int, int]) -> M:
    """The same model of images (C, H, W), its weights in the memory format in which it is to run."""
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    return model.to(memory_format=memory_format_of(model, torch.zeros(_TRIED_IMAGES, *shape, device=device)))


def memory_format_of(model: nn.Module, images: Tensor) -> torch.memory_format:
    """How weights and images (N, C, H, W) of this network are to lie in memory: channels last, unless it fails so.

    Channels last is the faster one, but a network that flattens by ``.view`` cannot run with it. That is decided once
    per network: two of the images are tried, forwards and backwards, in eval and in training mode, on a copy, so that
    the network, its hooks and the global random generators notice nothing.
    """
    if images.ndim != 4 or len(images) == 0:
        return torch.contiguous_format
    network = unwrapped(model)
    if network not in _formats:
        _formats[network] = _find_format(network, images)
    return _formats[network]


def _find_format(network: nn.Module, images: Tensor) -> torch.memory_format:
    images = in_own_type(network, images.detach()[:_TRIED_IMAGES])
    # The caller may be in any mode, and a trial has a backward pass.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        try:
            plain, last = (_copy(network, layout) for layout in (torch.contiguous_format, torch.channels_last))
        except Exception:  # Some networks cannot be copied, and so not be tried.
            return torch.contiguous_format
        # In training mode layers may speak to other workers, who are not asked.
        for training in (False,) if dist.is_available() and dist.is_initialized() else (False, True):
            found = _tried(last, images, torch.channels_last, training)
            if found is not None and training:
                continue
            expected = _tried(plain, images, torch.contiguous_format, training)
            if expected is not None and (found is None or not _alike(found, expected)):
                return torch.contiguous_format
    return torch.channels_last


def _copy(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    """A copy without hooks whose weights, shared where they lie so already, are frozen."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise TypeError("a copy of it has weights of its own")
    frozen = {
        id(weight): nn.Parameter(
            weight.detach().to(memory_format=layout) if weight.ndim == 4 else weight.detach(), False
        )
        for weight in network.parameters()
    }
    twin = copy.deepcopy(network, frozen)
    for module in twin.modules():
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            hooks.clear()
    return twin


def _tried(network: nn.Module, images: Tensor, layout: torch.memory_format, training: bool) -> Tensor | None:
    """What the network gives, once its gradient has been computed, too; None if either fails."""
    points = images.clone().to(memory_format=layout).requires_grad_()
    try:
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            network.train() if training else evaluate(network)
            outputs = network(points)
            if isinstance(outputs, Tensor) and outputs.requires_grad:
                torch.autograd.grad(outputs.float().sum(), points, allow_unused=True)
    except Exception:  # Whatever a network's own code says: it does not run so.
        return None
    return outputs.detach() if isinstance(outputs, Tensor) else points


def _alike(found: Tensor, expected: Tensor) -> bool:
    """Whether they differ by rounding alone: code that reads memory by its strides would be far off."""
    if found.shape != expected.shape or not expected.is_floating_point():
        return found.shape == expected.shape
    return bool((found - expected).abs().amax() <= 0.05 * expected.abs().amax())
