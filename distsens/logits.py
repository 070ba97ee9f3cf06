"""What a classifier returns: whether these are logits at all, and which class they name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distsens.errors import InputError
from distsens.networks import in_own_type

NO_CLASS = -1
"""What an image is taken for whose logits are not all finite: no label is equal to it."""

MOST_NOT_FINITE = 0.05
"""Part of the images whose logits may be NaN or infinite (and count as wrong) before an accuracy says nothing."""


def checked_logits(outputs: object, images: int) -> Tensor:
    """The outputs of a classifier for so many images, if they are logits: (N, K) floating, of 2 classes or more.

    Whether they are finite is another matter: see :func:`predictions`.

    Raises
    ------
    InputError : they are not; says what they are instead.
    """
    if isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.ndim == 2:
        count, classes = outputs.shape
        if count == images and classes > 1:
            return outputs
    allowed = f"it must return logits alone, a floating tensor ({images}, K) with K of 2 or more for {images} images"
    if not isinstance(outputs, Tensor) and isinstance(getattr(outputs, "logits", None), Tensor):
        allowed += ": wrap it in a module that returns the .logits of that"
    raise InputError("model", described(outputs), allowed)


class NotFiniteError(InputError):
    """A network whose logits are finite for none of some images."""


def check_weights(network: nn.Module, logits: Tensor) -> None:
    """Refuse a network that has finite logits (N, K) for none of some images, because some of its weights are NaN.

    Raises
    ------
    NotFiniteError : names the first of these weights.
    """
    if len(logits) == 0 or bool((predictions(logits) != NO_CLASS).any()):
        return
    for name, weight in network.named_parameters():
        if bool(weight.isnan().any()):
            raise NotFiniteError("model", "weights that are NaN", f"they must be numbers; some of {name} are not")


def plain_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Float32 logits (N, K) by a forward of the network as it is; images are cast to the type of its weights.

    Raises
    ------
    InputError : see :func:`checked_logits` and :func:`check_weights`.
    """
    logits = checked_logits(network(in_own_type(network, images)), len(images)).float()
    check_weights(network, logits.detach())
    return logits


def described(outputs: object) -> str:
    """What outputs are, in a few words."""
    match outputs:
        case Tensor():
            return f"{str(outputs.dtype).removeprefix('torch.')} of shape {tuple(outputs.shape)}"
        case Mapping():
            return f"{type(outputs).__name__} of {', '.join(map(str, outputs)) or 'nothing'}"
        case tuple() | list():
            return f"{type(outputs).__name__} of {len(outputs)}"
        case None:
            return "None"
    return type(outputs).__name__


def too_many_not_finite(count: int, images: int) -> str | None:
    """A line where more than ``MOST_NOT_FINITE`` of the images have logits that are not finite, else None."""
    if count <= MOST_NOT_FINITE * images:
        return None
    return f"the model's logits are NaN or infinite for {count} of {images} images, more than {MOST_NOT_FINITE:.0%}"


def predictions(logits: Tensor) -> Tensor:
    """The class of the largest logit, (N,) int64, for logits (N, K); ``NO_CLASS`` where one is NaN or infinite.

    The largest of numbers of which one is NaN is at no place in particular, and argmax says the first: an image of
    class 0 would be right.
    """
    return torch.where(logits.isfinite().all(1), logits.argmax(1), NO_CLASS)
