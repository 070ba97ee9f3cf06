"""What forwards tell of a network's layers: which are called, where images lie in their outputs, what makes logits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from distsens.networks import as_written, in_eval_mode, in_own_type, keeping_buffers
from distsens.sensitivity.shared_noise import SharedNoise

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that ``"auto"`` chooses from."""

_IMAGES = 3  # With two, rows that alternate between images can look like rows of one image after those of another.
_FAR_LESS = 0.01
# Names that autograd gives to products with weights.
_PRODUCTS = ("Addmm", "Mm", "Addmv", "Mv", "Bmm", "Baddbmm", "Linear", "Convolution", "Mkldnn", "Cdist", "Euclidean")

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_known: WeakKeyDictionary[nn.Module, dict[object, Survey]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Survey:
    """What a network does with images of one shape, in eval mode.

    calls : how often each module was called, in the order of the first calls.
    rows : of every module whose output holds the images one after the other, how many rows (entries of the first
        dimension) belong to each.
    faults : why the other modules' outputs cannot be read image by image.
    hidden : convolutions and linear layers that are called exactly once and that the logits depend on, but whose
        output does not become the logits, and does depend on the images.
    """

    calls: Mapping[str, int]
    rows: Mapping[str, int]
    faults: Mapping[str, str]
    hidden: tuple[str, ...]


def known_survey(network: nn.Module, images: Tensor, names: Iterable[str]) -> Survey:
    """The survey for images (N, ...) of that shape and type, made once for as long as it knows these layers."""
    known = _known.get(network, {}).get(_kind(images))
    if known is None or not all(name in known.rows for name in names):
        known = survey(network, images)  # A network may have changed, and call other layers.
    return known


def survey(network: nn.Module, images: Tensor) -> Survey:
    """Forward some images of the shape and type of ``images`` (N, ...), and compare what the layers say of them.

    Where the rows of an output belong to images one after the other, those of equal images are equal and those of
    others differ; rows that are in another order, or belong to no image at all, give themselves away. What says the
    same of all images, as a branch that begins at zero does, is asked again with an image of NaN, which shows in
    whatever depends on it. An output becomes the logits where nothing that autograd records on the way from it to them
    multiplies by weights: views, pooling, activations, norms and sums do not.

    The model, its hooks and the global random generators notice nothing of it. Three images are forwarded or, if the
    model fails on three, as many as were given. What the model raises is raised.
    """
    typed = in_own_type(network, images.detach())
    with _undisturbed(network):
        try:
            found = _survey(network, typed, _IMAGES)
        except Exception:
            if len(images) <= _IMAGES:
                raise
            found = _survey(network, typed, len(images))
    _known.setdefault(network, {})[_kind(images)] = found
    return found


def _kind(images: Tensor) -> object:
    return images.shape[1:], images.dtype


def _survey(network: nn.Module, images: Tensor, count: int) -> Survey:
    watch = _Watch(network, count)
    one, second, third = _random_images(images)
    logits = watch.forward(one, second, 1, graph=True)
    watch.forward(one, third, count - 1)
    if (silent := watch.silent()) and images.is_floating_point():
        watch.ask(silent, one)
    return watch.survey(logits, lambda name: _decides(network, name, one, count))


@dataclass
class _Seen:
    """Of one module: outputs of equal images lie ``same`` apart at most, those of others ``other``, in each forward."""

    calls: int = 0
    rows: int = 0
    fault: str | None = None
    same: list[Tensor] = field(default_factory=list)
    other: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    node: Node | None = None

    @property
    def constant(self) -> bool:
        """Whether the output was the same whatever the images were."""
        return self.calls > 0 and len(self.sums) > 0 and all(bool(one == self.sums[0]) for one in self.sums)

    @property
    def by_images(self) -> bool | None:
        """Whether rows of one image follow those of another; None if no forward could tell."""
        answers = []
        for same, other in zip(self.same, self.other, strict=True):
            if same == 0 and other == 0:
                continue
            answers.append(bool(same.isfinite() & (same <= _FAR_LESS * other)))
        return all(answers) if answers else None


class _Watch:
    """Hooks on all modules of a network, and what they saw."""

    def __init__(self, network: nn.Module, images: int) -> None:
        self._network = network
        self._images = images
        self._names = {
            module: name
            for name, module in network.named_modules()
            if name and not isinstance(module, torch.jit.ScriptModule)  # a program has no layers
        }
        self._seen: dict[str, _Seen] = {}
        self._asked: set[str] | None = None
        self._odd = 0

    def forward(self, one: Tensor, other: Tensor, odd: int, *, graph: bool = False) -> Any:
        """Forward one image, again and again, with another only at the place ``odd``."""
        batch = torch.stack([other if place == odd else one for place in range(self._images)])
        if one.ndim == 3 and not one.is_contiguous():
            batch = batch.contiguous(memory_format=torch.channels_last)
        self._odd = odd
        with ExitStack() as around:
            for module in self._names:
                around.callback(module.register_forward_hook(self._look).remove)
            around.enter_context(torch.set_grad_enabled(graph))
            if graph:
                around.enter_context(_all_trainable(self._network))
                batch.requires_grad_(batch.is_floating_point())
            # All images have the same noise, if the network adds any.
            around.enter_context(SharedNoise(self._network, torch.zeros(self._images, dtype=torch.int64)))
            return self._network(batch)

    def _look(self, module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG002
        name = self._names[module]
        if self._asked is not None and name not in self._asked:
            return
        seen = self._seen.setdefault(name, _Seen())
        seen.calls += torch.is_grad_enabled()
        if not isinstance(output, Tensor):
            seen.fault = f"its output is a {type(output).__name__}, not a tensor"
            return
        seen.node = seen.node or output.grad_fn
        values = output.detach()
        values = (torch.view_as_real(values) if values.is_complex() else values).double()
        seen.sums.append(values.sum())
        if values.ndim < 2:
            seen.fault = f"its output has shape {tuple(output.shape)}, not (N, C, ...)"
        elif len(values) % self._images or values.numel() == 0:
            seen.fault = self._no_images(output)
        else:
            seen.rows = len(values) // self._images
            parts = values.reshape(self._images, -1)
            equal = torch.arange(self._images, device=parts.device) != self._odd
            seen.same.append(_apart(parts[equal], parts[0]))
            seen.other.append(_apart(parts[self._odd], parts[0]))
            if seen.by_images is False:
                seen.fault = self._no_images(output)

    def _no_images(self, output: Tensor) -> str:
        return (
            f"the first dimension of its output is not the images, nor rows of one image after those of another: "
            f"{self._images} images give {tuple(output.shape)}"
        )

    def silent(self) -> set[str]:
        """The modules that said the same of all images."""
        return {
            name
            for name, seen in self._seen.items()
            if seen.constant or (seen.fault is None and seen.by_images is None)
        }

    def ask(self, modules: set[str], one: Tensor) -> None:
        """Show these modules an image of NaN."""
        self._asked = modules
        with suppress(Exception):  # A network may check its images; what says the same of all is then not readable.
            for odd in (1, self._images - 1):
                self.forward(one, torch.full_like(one, torch.nan), odd)

    def survey(self, logits: Any, decides: Callable[[str], bool]) -> Survey:
        """What was seen; ``decides`` tells whether the logits depend on a layer which is not in their graph."""
        calls, rows, faults, hidden = {}, {}, {}, []
        once = {}
        for name, seen in self._seen.items():
            calls[name] = seen.calls
            if seen.calls > 1:
                times = "twice" if seen.calls == 2 else f"{seen.calls} times"
                faults[name] = f"the layer was called {times} in one forward pass, so its neurons are ambiguous"
            elif seen.fault is not None:
                faults[name] = seen.fault
            elif not seen.by_images:
                faults[name] = "its output says the same of all images, so its rows cannot be told apart"
            else:
                rows[name] = seen.rows
            if seen.calls == 1 and isinstance(self._network.get_submodule(name), WEIGHTED):
                once[name] = seen
        graph = _Graph(logits)
        heads = graph.heads({seen.node: name for name, seen in once.items() if seen.node is not None})
        if not graph.roots:  # Gradients are cut off behind the layers: nothing tells of the way to the logits.
            heads = set(list(once)[-1:])
        for name, seen in once.items():
            known = seen.node in graph.nodes or not graph.roots
            if name not in heads and not seen.constant and (known or decides(name)):
                hidden.append(name)
        return Survey(calls, rows, faults, tuple(hidden))


class _Graph:
    """What autograd recorded on the way to the logits."""

    def __init__(self, output: Any) -> None:
        tensors = list(_tensors(output))
        # Further outputs of the same shape are logits too, of auxiliary heads; others are features or losses.
        self.roots = [one.grad_fn for one in tensors if one.shape == tensors[0].shape and one.grad_fn is not None]
        self.nodes = self._walk(set())[0]

    def heads(self, layers: Mapping[Node, str]) -> set[str]:
        """The layers whose outputs become the logits without being multiplied by weights again."""
        return {layers[node] for node in self._walk(layers.keys())[1]}

    def _walk(self, ends: Iterable[Node]) -> tuple[set[Node], set[Node]]:
        """Nodes that lead to the roots, and the ``ends`` met, behind which nothing was looked at, nor behind products.

        Without any end all nodes are met.
        """
        ends = set(ends)
        met: set[Node] = set()
        open_nodes: list[Node | None] = list(self.roots)
        while open_nodes:
            node = open_nodes.pop()
            if node is None or node in met:
                continue
            met.add(node)
            if not ends or not (node in ends or _multiplies(node)):
                open_nodes += [before for before, _ in node.next_functions]
        return met, met & ends


def _multiplies(node: Node) -> bool:
    """Whether an operation mixes what it gets by weights: one of the known products, or one with a matrix of them."""
    return node.name().startswith(_PRODUCTS) or any(_is_matrix(before) for before, _ in node.next_functions)


def _is_matrix(node: Node | None) -> bool:
    """Whether a node stands for a parameter, or a view of one, with two dimensions or more."""
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    weights = getattr(node, "variable", None)
    return isinstance(weights, nn.Parameter) and sum(size > 1 for size in weights.shape) > 1


def _decides(network: nn.Module, name: str, image: Tensor, count: int) -> bool:
    """Whether the logits change where a layer's output is lost; auxiliary heads may be called without a use."""

    def lose(module: nn.Module, inputs: object, output: Any) -> Any:  # noqa: ARG001
        return torch.full_like(output, torch.nan) if isinstance(output, Tensor) else output

    handle = network.get_submodule(name).register_forward_hook(lose)
    try:
        with torch.no_grad():
            outputs = network(torch.stack([image] * count))
    except Exception:  # A network that checks its values does look at them.
        return True
    finally:
        handle.remove()
    return any(bool(one.isnan().any()) for one in _tensors(outputs))


def _apart(first: Tensor, second: Tensor) -> Tensor:
    """The largest difference; NaN is equal to NaN, and infinitely far from anything else."""
    equal = (first == second) | (first.isnan() & second.isnan())
    return torch.where(equal, 0.0, (first - second).abs().nan_to_num(torch.inf)).max()


def _random_images(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three images of the shape, type and memory format of those given."""
    shape = (3, *images.shape[1:])
    generator = torch.Generator().manual_seed(0)
    if images.is_floating_point():
        made = torch.rand(shape, generator=generator)
    else:
        low, high = (int(images.min()), int(images.max())) if images.numel() else (0, 0)
        made = torch.randint(low, max(high, low + 1) + 1, shape, generator=generator)
    made = made.to(images.device, images.dtype)
    if images.ndim == 4 and not images.is_contiguous():
        made = made.contiguous(memory_format=torch.channels_last)
    first, second, third = made
    return first, second, third


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Eval mode and no hooks; afterwards hooks, modes, buffers and random generators are as before."""
    device = next((one.device for one in network.parameters()), torch.device("cpu"))
    hooks = [
        (vars(module), kind, vars(module)[kind])
        for module in network.modules()
        for kind in _HOOKS
        if kind in vars(module)
    ]
    for attributes, kind, _ in hooks:
        attributes[kind] = OrderedDict()
    try:
        with (
            torch.inference_mode(False),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            as_written(network),
            keeping_buffers(network),
            in_eval_mode(network),
        ):
            yield
    finally:
        for attributes, kind, before_hooks in hooks:
            attributes[kind] = before_hooks


@contextmanager
def _all_trainable(network: nn.Module) -> Iterator[None]:
    """Let autograd see frozen weights too."""
    frozen = [one for one in network.parameters() if not one.requires_grad and one.is_floating_point()]
    for one in frozen:
        one.requires_grad_(True)
    try:
        yield
    finally:
        for one in frozen:
            one.requires_grad_(False)
