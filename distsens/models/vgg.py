"""VGG with batch normalisation in the form that is usual for CIFAR's 32x32 images: one linear layer after the features.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from distsens.models.torchvision_models import fitted


def vgg11_bn(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """VGG-11 (configuration A) with batch normalisation."""
    return _vgg("A", shape[0], classes)


def vgg16_bn(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """VGG-16 (configuration D) with batch normalisation."""
    return _vgg("D", shape[0], classes)


def _vgg(configuration: str, channels: int, classes: int) -> nn.Module:
    from torchvision.models import vgg

    features = vgg.make_layers(vgg.cfgs[configuration], batch_norm=True)
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True  # the same for 32x32; images that are smaller would otherwise shrink to nothing
    network = nn.Sequential(
        OrderedDict(
            features=features,
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(512, classes),
        )
    )
    return fitted(network, channels)
