"""ResNets in the form that is usual for CIFAR's 32x32 images: torchvision's, with a stem that keeps the resolution.

Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from __future__ import annotations

from torch import nn

from distsens.models.torchvision_models import torchvision_model


def resnet18(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet-18: a 3x3 stem of stride 1 without max-pooling, then the published stages of 2, 2, 2 and 2 blocks."""
    return torchvision_model("resnet18", shape=shape, classes=classes, small_images=True)


def resnet34(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet-34: as :func:`resnet18`, with 3, 4, 6 and 3 blocks."""
    return torchvision_model("resnet34", shape=shape, classes=classes, small_images=True)


def resnet50(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet-50: as :func:`resnet34`, of bottleneck blocks."""
    return torchvision_model("resnet50", shape=shape, classes=classes, small_images=True)
