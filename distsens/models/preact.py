"""Residual networks whose blocks normalise and rectify first: PreAct ResNet-18 and wide ResNets, for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from distsens.errors import InputError


class PreActBlock(nn.Module):
    """Normalisation, ReLU and 3x3 convolution, twice, beside a shortcut.

    A shortcut that changes the shape is a 1x1 convolution of the first ReLU's output. Each ReLU is a module of its
    own, so that a probe can tell them apart.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, H / stride, W / stride), rounded up."""
        activations = self.relu1(self.bn1(features))
        residual: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activations))))
        return residual + (features if self.shortcut is None else self.shortcut(activations))


def preact_resnet18(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """PreAct ResNet-18: a 3x3 stem of stride 1, then four stages of two blocks (64, 128, 256, 512 channels).

    Source: He, Zhang, Ren and Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016, with the normalisation
    and ReLU of its figure after the last block.
    """
    return _preact(shape[0], classes, stem=64, widths=(64, 128, 256, 512), blocks=2)


def wide_resnet(depth: int, width: int, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """WRN-depth-width: a 3x3 stem of 16 channels, then three stages of (depth - 4) / 6 blocks (16, 32, 64 times width).

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, without dropout.
    """
    if depth < 10 or (depth - 4) % 6:
        raise InputError("model.name", f"wrn{depth}_{width}", "the depth must be 6n + 4, such as 16, 28 or 34")
    widths = (16 * width, 32 * width, 64 * width)
    return _preact(shape[0], classes, stem=16, widths=widths, blocks=(depth - 4) // 6)


def _preact(channels: int, classes: int, *, stem: int, widths: Sequence[int], blocks: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=nn.Conv2d(channels, stem, 3, padding=1, bias=False))
    before = stem
    for number, width in enumerate(widths, start=1):
        first = PreActBlock(before, width, stride=1 if number == 1 else 2)
        layers[f"layer{number}"] = nn.Sequential(first, *(PreActBlock(width, width, 1) for _ in range(blocks - 1)))
        before = width
    layers |= OrderedDict(
        bn=nn.BatchNorm2d(before),
        relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(before, classes),
    )
    network = nn.Sequential(layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
