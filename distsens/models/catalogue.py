"""Models by name: our own, any of torchvision's, or ``package.module:factory``.

To add one, write a builder and enter it in ``MODELS``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from distsens.errors import InputError, said
from distsens.logits import described
from distsens.models.lenet import lenet5
from distsens.models.pixels import PixelModel
from distsens.models.preact import preact_resnet18, wide_resnet
from distsens.models.resnet import resnet18, resnet34, resnet50
from distsens.models.small_cnn import small_cnn
from distsens.models.strangers import current_folder_importable
from distsens.models.torchvision_models import torchvision_model, torchvision_names
from distsens.models.vgg import vgg11_bn, vgg16_bn
from distsens.models.vit import vit_tiny
from distsens.networks import evaluate


class Builder(Protocol):
    """Makes an untrained network for images of ``shape`` (C, H, W) that returns logits (N, classes)."""

    def __call__(self, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Build it from PyTorch's global CPU generator."""
        ...


MODELS: dict[str, Builder] = {
    "small_cnn": small_cnn,
    "lenet5": lenet5,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "preact_resnet18": preact_resnet18,
    "vgg11_bn": vgg11_bn,
    "vgg16_bn": vgg16_bn,
    "vit_tiny": vit_tiny,
}
"""Beside these, all for images of about 32x32, there are ``wrn<depth>_<width>`` and torchvision's models."""

_TORCHVISION = "torchvision:"
_WIDE_RESNET = re.compile(r"wrn([1-9]\d{0,2})_([1-9]\d{0,2})")


def build(
    name: str,
    *,
    shape: tuple[int, int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    small_images: bool = False,
) -> PixelModel:
    """Build an untrained classifier on the CPU.

    Parameters
    ----------
    name : one of ``MODELS``; a wide ResNet as ``wrn34_10``; one of torchvision's classifiers as
        ``torchvision:resnet50`` (or bare, where ``MODELS`` has no such name); or ``package.module:factory`` for a
        `Builder` of one's own. The current folder is importable, as with ``python -m``.
    shape : (C, H, W) of one image.
    classes : number of logits.
    mean, std : of the [0, 1] pixels, one number per channel or one for all.
    seed : decides the initial weights, alone; the global generator is left as it was.
    small_images : for torchvision's models: replace a stem that shrinks the image, see :func:`torchvision_model`.

    Returns
    -------
    A model in training mode that takes images (N, C, H, W) in [0, 1] and returns logits (N, classes).

    Raises
    ------
    InputError
        If the name leads to no such network, it has no stem to replace, or mean or std do not fit the channels.
    """
    for field, numbers in (("model.mean", mean), ("model.std", std)):
        if len(numbers) not in (1, shape[0]):
            raise InputError(field, tuple(numbers), f"must be one number, or one for each of {shape[0]} channels")
    if min(std) <= 0:
        raise InputError("model.std", tuple(std), "must be greater than 0")

    # The CPU's generator alone: torch.manual_seed would reseed every GPU's as well.
    with current_folder_importable(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        network = _network(name, _builder(name, small_images), shape, classes)
        if not isinstance(network, nn.Module):
            raise InputError("model.name", name, f"must return an nn.Module, not a {type(network).__name__}")
        model = PixelModel(network, mean, std)
        _check_logits(name, model, shape, classes)
    try:
        return model.train()
    except NotImplementedError:
        allowed = "it is an exported program, which has no training mode and no layers; return the network itself"
        raise InputError("model.name", name, allowed) from None


def _network(name: str, builder: Builder, shape: tuple[int, int, int], classes: int) -> nn.Module:
    try:
        return builder(shape=shape, classes=classes)
    except InputError:
        raise
    except Exception as problem:  # A network refuses, or a factory is wrong, in any way it likes.
        allowed = f"cannot be made for images of shape {shape} and {classes} classes ({said(problem)})"
        raise InputError("model.name", name, allowed) from problem


def _builder(name: str, small_images: bool) -> Builder:
    bare = name.removeprefix(_TORCHVISION)
    if name in MODELS:
        builder = MODELS[name]
    elif wide := _WIDE_RESNET.fullmatch(name):
        builder = partial(wide_resnet, int(wide[1]), int(wide[2]))
    elif ":" in bare:
        builder = _own_factory(name)
    elif bare in torchvision_names():
        return partial(torchvision_model, bare, small_images=small_images)
    else:
        raise InputError("model.name", name, _allowed(name))
    if small_images:
        raise InputError("model.small_images", True, f"it replaces the stem of torchvision's models; {name} is none")
    return builder


def _allowed(name: str) -> str:
    allowed = f'{", ".join(MODELS)}, wrn<depth>_<width>, torchvision:<name> or "package.module:factory"'
    close = difflib.get_close_matches(name.removeprefix(_TORCHVISION), {*MODELS, *torchvision_names()})
    return f"must be one of {allowed}" + (f"; close to it are {', '.join(close)}" if close else "")


def _own_factory(name: str) -> Builder:
    module_name, _, factory_name = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), factory_name]):
        raise InputError("model.name", name, _allowed(name))
    try:
        module = importlib.import_module(module_name)
    except Exception as problem:
        allowed = f"module {module_name} cannot be imported ({said(problem)})"
        raise InputError("model.name", name, allowed) from problem
    if not hasattr(module, factory_name):
        raise InputError("model.name", name, f"module {module_name} has no {factory_name}")
    factory: Builder = getattr(module, factory_name)
    if not callable(factory):
        raise InputError("model.name", name, f"{factory_name} must be a function of shape and classes")
    try:
        inspect.signature(factory).bind(shape=(1, 1, 1), classes=2)
    except (TypeError, ValueError) as problem:
        allowed = f"{factory_name} must be a function of shape and classes ({problem})"
        raise InputError("model.name", name, allowed) from problem
    return factory


def _check_logits(name: str, model: PixelModel, shape: tuple[int, int, int], classes: int) -> None:
    """Try one black image, so that a network that does not fit is reported before anything starts."""
    evaluate(model)  # batch normalisation refuses a single image in training mode
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, *shape))
    except Exception as problem:
        raise InputError("model.name", name, f"must take images of shape {shape} ({said(problem)})") from problem
    if not isinstance(logits, Tensor) or logits.shape != (1, classes) or not logits.is_floating_point():
        whole = isinstance(logits, Tensor) and logits.is_floating_point()
        found = tuple(logits.shape) if whole else described(logits)
        raise InputError("model.name", name, f"must return logits of shape (1, {classes}) for one image, not {found}")
