"""Noise that the images of a pair share: dropout, stochastic depth, and whatever else a network draws in a forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose random numbers depend on nothing but a shape: what they draw for one image serves another.
_DRAWING = frozenset(
    "bernoulli.p bernoulli_.float uniform_.default normal_.default exponential_.default geometric_.default "
    "cauchy_.default log_normal_.default random_.default random_.from random_.to rand.default rand.generator "
    "randn.default randn.generator randint.default randint.low rand_like.default randn_like.default "
    "randint_like.default randint_like.low_dtype".split()
)


class SharedNoise(TorchDispatchMode):
    """Inside the block, images of a forward get the random numbers that were drawn for others.

    Without it a benign image and its adversarial twin have a dropout mask each, and what their neurons say differently
    is mostly that. It is done where torch draws: numbers whose first dimension is a multiple of the images, rows of one
    image after those of another, are drawn as ever, and then those of image ``source[i]`` are given to image i as
    well. Each image by itself has the noise that it would have had, so it does not change what is trained.

    Not shared are numbers that lie otherwise, that a fused kernel draws inside (attention on GPUs), or that are drawn
    from probabilities of the images' own; and those for weights, which are not of images.

    Parameters
    ----------
    model : in which the forward takes place.
    source : (N,) for each image of the forward, the image whose noise it gets.

    Attributes
    ----------
    drawn : whether the network drew any number so far. The backward pass of one that runs layers once more to save
        memory has to be in the block as well.
    """

    def __init__(self, model: nn.Module, source: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn = False
        self._source = source
        self._shapes = {weights.shape for weights in model.parameters()}
        self._for_weights: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.drawn |= torch.Tag.nondeterministic_seeded in func.tags
        if func is torch.ops.aten.native_dropout.default:
            return self._dropped(*args, **kwargs)
        drawn = func(*args, **kwargs)
        if args and self._is_for_weights(args[0]):
            if func is torch.ops.aten.empty_like.default:  # to be filled, as a mask of weights is
                self._for_weights.append(drawn)
            return drawn
        if func.namespace == "aten" and str(func).removeprefix("aten.") in _DRAWING and self._is_of_images(drawn):
            drawn.copy_(self._shared(drawn))
        return drawn

    def _dropped(self, inputs: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
        """Dropout as one operation, as on GPUs, whose mask autograd keeps."""
        outputs, mask = torch.ops.aten.native_dropout.default(inputs, p, train)
        of_images = self._is_of_images(inputs) and not self._is_for_weights(inputs)
        if train is False or not 0.0 < p < 1.0 or not of_images:
            return outputs, mask
        mask = self._shared(mask)
        return inputs * mask * (1.0 / (1.0 - p)), mask

    def _is_for_weights(self, tensor: object) -> bool:
        return isinstance(tensor, nn.Parameter) or any(tensor is one for one in self._for_weights)

    def _is_of_images(self, drawn: Tensor) -> bool:
        count = len(self._source)
        if drawn.ndim == 0 or len(drawn) == 0 or count == 0:
            return False
        return len(drawn) == count or (len(drawn) % count == 0 and drawn.shape not in self._shapes)

    def _shared(self, drawn: Tensor) -> Tensor:
        by_image = drawn.unflatten(0, (len(self._source), len(drawn) // len(self._source)))
        shared: Tensor = by_image[self._source.to(drawn.device)].flatten(0, 1)
        return shared


def pair_noise(images: int, twins: int = 1) -> Tensor:
    """The ``source`` of a forward of so many images and then, one after the other, of all their twins of each kind."""
    return torch.arange(images).repeat(1 + twins)


@contextmanager
def same_noise(model: nn.Module) -> Iterator[None]:
    """Let every such block draw the same random numbers; the global generators are left as they were."""
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
