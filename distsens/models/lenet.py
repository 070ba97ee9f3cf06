"""LeNet-5, the classic of handwritten digits."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def lenet5(*, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Two 5x5 convolutions (6, pool, 16, pool) and three linear layers (120, 84, classes), with tanh and mean pooling.

    As published for 32x32, in plain layers: pooling has no trainable scale, the second convolution sees every map of
    the first, and the output is linear. Smaller images are padded: sides under 32 in the first convolution (28x28
    becomes the published 32x32), sides under 12 in the second as well, down to sides of 4.

    Parameters
    ----------
    shape : (C, H, W) of one image.
    classes : number of logits.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.
    """
    channels, height, width = shape
    paddings = [2 if min(height, width) < enough else 0 for enough in (32, 12)]
    for padding in paddings:
        height, width = ((size - 4 + 2 * padding) // 2 for size in (height, width))
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, 5, padding=paddings[0]),
            tanh1=nn.Tanh(),
            pool1=nn.AvgPool2d(2),
            conv2=nn.Conv2d(6, 16, 5, padding=paddings[1]),
            tanh2=nn.Tanh(),
            pool2=nn.AvgPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * height * width, 120),
            tanh3=nn.Tanh(),
            fc2=nn.Linear(120, 84),
            tanh4=nn.Tanh(),
            fc3=nn.Linear(84, classes),
        )
    )
