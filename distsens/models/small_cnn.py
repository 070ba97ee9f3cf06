"""The small convolutional network that the literature on adversarial MNIST trains."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def small_cnn(*, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Four 3x3 convolutions (32, 32, pool, 64, 64, pool) and three linear layers (200, 200, classes).

    The convolutions are not padded, as published for 28x28; images too small for that (a side under 16) get padding
    1, down to sides of 4. The published dropout is left out: its noise would depend on the worker.

    Parameters
    ----------
    shape : (C, H, W) of one image.
    classes : number of logits.

    Source: Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, table I.
    """
    channels, height, width = shape
    padding = 0 if min(height, width) >= 16 else 1

    def after_block(size: int) -> int:
        return (size - 4 + 4 * padding) // 2

    features = 64 * after_block(after_block(height)) * after_block(after_block(width))
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 32, 3, padding=padding),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 32, 3, padding=padding),
            relu2=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv3=nn.Conv2d(32, 64, 3, padding=padding),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(64, 64, 3, padding=padding),
            relu4=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(features, 200),
            relu5=nn.ReLU(),
            fc2=nn.Linear(200, 200),
            relu6=nn.ReLU(),
            fc3=nn.Linear(200, classes),
        )
    )
