"""torchvision's classifiers, untrained, fitted to the images at hand and free of noise."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from types import MethodType
from typing import Any

from torch import Tensor, nn

from distsens.errors import InputError

# Where a family first shrinks the image: the convolution of its stem, and the pooling right after it.
_STEMS: dict[str, tuple[str, str | None]] = {
    "ResNet": ("conv1", "maxpool"),  # ResNeXt and Wide ResNet are of this class too
    "RegNet": ("stem.0", None),
    "DenseNet": ("features.conv0", "features.pool0"),
    "ShuffleNetV2": ("conv1.0", "maxpool"),
    "MobileNetV2": ("features.0.0", None),
    "MobileNetV3": ("features.0.0", None),
    "EfficientNet": ("features.0.0", None),
    "MNASNet": ("layers.0", None),
}

# Parts of the published weights that serve training alone, by the network's class.
_TRAINING_HEADS = {"GoogLeNet": ("aux1", "aux2"), "Inception3": ("AuxLogits",)}
# In the published weights of DenseNets, as in torchvision before 0.3, a number stands apart: norm.1 for norm1.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.(?=[^.]+$)")

# Their auxiliary heads would return further logits, in training alone.
_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    """Names of torchvision's image classifiers."""
    from torchvision import models  # here, because it takes seconds that other models need not wait for

    return tuple(models.list_models(module=models))


def torchvision_model(name: str, *, shape: tuple[int, int, int], classes: int, small_images: bool = False) -> nn.Module:
    """One of torchvision's classifiers with its own initial weights, as its paper has it but for three things.

    The first convolution takes the images' channels. Dropout and stochastic depth are off: their noise would depend on
    the worker that draws it. A vision transformer's last layer starts with small random weights in place of zeros,
    through which no gradient reaches an image. A Swin transformer's attention uses linear layers without calling them,
    so that no probe can read them: name its other layers, as in ``network.features*.mlp.0``.

    Parameters
    ----------
    name : one of :func:`torchvision_names`.
    shape : (C, H, W) of one image.
    classes : number of logits.
    small_images : for images of about 32x32 that the stem would shrink too far: its convolution becomes 3x3 of stride
        1, and the pooling after it is left out.

    Raises
    ------
    InputError
        If the network has no such stem, or cannot be made for images of this shape.
    """
    from torchvision import models

    options: dict[str, Any] = dict(_OPTIONS.get(name, {}))
    if name.startswith("vit_"):
        options["image_size"] = shape[1]
        patch = int(name.rpartition("_")[2])
        if shape[1] != shape[2] or shape[1] % patch:
            raise InputError("model.name", name, f"takes square images of a side that {patch} divides, not {shape}")
    if name.startswith("maxvit_"):
        options["input_size"] = shape[1:]
    try:
        network: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    except ValueError as problem:
        raise InputError("model.name", name, f"takes no images of shape {shape} ({problem})") from problem
    if small_images:
        _keep_resolution(name, network)
    return fitted(network, shape[0])


def current_layout(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights of torchvision's networks as its networks here hold them.

    GoogLeNet and Inception v3 are without their auxiliary heads, which no prediction asks. (Both were trained on images
    that were normalised by a mean and a standard deviation of 0.5.) The layers of DenseNets are called as today's are.
    """
    kinds = {type(module).__name__ for module in network.modules()}
    heads = [head for kind in kinds for head in _TRAINING_HEADS.get(kind, ())]
    kept = {name: tensor for name, tensor in state.items() if not set(name.split(".")).intersection(heads)}
    if "DenseNet" in kinds:
        kept = {_OLD_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in kept.items()}
    return kept


def fitted(network: nn.Module, channels: int) -> nn.Module:
    """Let a torchvision network take this many channels, without noise and without a last layer of zeros."""
    from torchvision.models import MNASNet, VisionTransformer
    from torchvision.ops import StochasticDepth

    first = next(path for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if _convolution(network, first).in_channels != channels:
        _replace(network, first, in_channels=channels)
    for module in network.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
    if isinstance(network, VisionTransformer):
        nn.init.trunc_normal_(network.heads.head.weight, std=0.02)
    if isinstance(network, MNASNet):  # its own refuses a state without torch.save's versions, as safetensors keep none
        setattr(network, "_load_from_state_dict", MethodType(nn.Module._load_from_state_dict, network))  # noqa: B010
    return network


def _keep_resolution(name: str, network: nn.Module) -> None:
    family = type(network).__name__
    if family not in _STEMS:
        families = ", ".join(_STEMS)
        raise InputError("model.small_images", True, f"{name} has no stem to replace; {families} have one")
    convolution, pooling = _STEMS[family]
    _replace(network, convolution, kernel_size=3, stride=1, padding=1)
    if pooling is not None:
        network.set_submodule(pooling, nn.Identity())


def _replace(network: nn.Module, path: str, **changes: int) -> None:
    """Put a new convolution, initialised as in ResNet, in the place of another."""
    old = _convolution(network, path)
    settings: dict[str, Any] = {
        "in_channels": old.in_channels,
        "kernel_size": old.kernel_size,
        "stride": old.stride,
        "padding": old.padding,
    }
    new = nn.Conv2d(out_channels=old.out_channels, bias=old.bias is not None, **(settings | changes))
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(path, new)


def _convolution(network: nn.Module, path: str) -> nn.Conv2d:
    module = network.get_submodule(path)
    assert isinstance(module, nn.Conv2d)
    return module
