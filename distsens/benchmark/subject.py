"""What is measured on: two networks, briefly trained on real images, and batches of these images."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distsens import assembly
from distsens.benchmark.environment import fast_precision
from distsens.data import ImageSet, epoch_order, representatives, to_pixels
from distsens.experiment import Experiment, Precision, merge


@dataclass(frozen=True)
class Scale:
    """How much work a round is, for one network.

    model, shape, title : the network, of images (C, H, W), and what to call it.
    batch : images in an attack or a training step.
    steps : of PGD.
    eps : Linf radius at which PGD neither always nor never succeeds on the briefly trained network.
    epochs, images : of that training.
    """

    model: str
    shape: tuple[int, int, int]
    title: str
    batch: int
    eps: float
    epochs: int
    images: int = 1280
    steps: int = 10


FULL: tuple[Scale, ...] = (
    Scale("small_cnn", (1, 28, 28), "small CNN", batch=256, eps=0.07, epochs=4),
    Scale("resnet18", (3, 32, 32), "ResNet-18", batch=64, eps=0.03, epochs=2),
)
QUICK: tuple[Scale, ...] = (
    Scale("small_cnn", (1, 28, 28), "small CNN", batch=16, eps=0.07, epochs=6, images=256, steps=2),
)


@dataclass(frozen=True)
class Subject:
    """A trained network with the images to attack.

    network : on the device, in eval mode; never changed: take a :meth:`fresh` one to train.
    images, labels : float32 (N, C, H, W) in [0, 1] and int64 (N,), on the device; it was trained on them.
    test_images, test_labels : others, on which it was not.
    precision : of our attacks and training forwards, as of a recipe.
    """

    scale: Scale
    device: torch.device
    precision: Precision
    network: nn.Module
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @staticmethod
    def train(scale: Scale, data: Mapping[str, Any], device: torch.device, precision: Precision) -> Subject:
        """Train under noise, which leaves a network half robust: there attacks differ the most.

        ``data`` are the fields of a recipe's data section; its images are resized and, for colour, repeated.
        """
        dataset = assembly.load_data(Experiment.parse({"data": dict(data)}))
        images, labels = _some(dataset.train, scale, device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            experiment = Experiment.parse({"data": dict(data), "model": {"name": scale.model}})
            network = assembly.build_model(experiment, scale.shape, len(dataset.classes)).to(device)
            optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
            low = fast_precision(device) == "bf16"
            for _ in range(scale.epochs):
                for batch in torch.randperm(len(images), device=device).split(64):
                    noisy = (images[batch] + 0.2 * torch.randn_like(images[batch])).clamp(0.0, 1.0)
                    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
                        loss = F.cross_entropy(network(noisy), labels[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        others, tested = _some(dataset.test, scale, device)
        return Subject(scale, device, precision, network.eval(), images, labels, others, tested)

    @property
    def low_attack(self) -> dict[str, Any]:
        """Changes of an experiment: attacks in this precision, training in float32."""
        return {"attack": {"precision": self.precision}}

    @property
    def low(self) -> dict[str, Any]:
        """Changes of an experiment: attacks and training forwards in this precision."""
        return self.low_attack | {"training": {"precision": self.precision}}

    def experiment(self, changes: Mapping[str, Any]) -> Experiment:
        """PGD adversarial training of this network in float32, with ``changes`` of fields."""
        scale = self.scale
        fields = {
            "model": {"name": scale.model},
            "threat": {"norm": "linf", "eps": scale.eps},
            "attack": {"steps": scale.steps},
            "training": {"batch_size": scale.batch, "lr": 0.01},
        }
        return Experiment.parse(merge(fields, changes))

    def fresh(self) -> nn.Module:
        """A copy of the network that may be changed."""
        return deepcopy(self.network)

    def plain(self) -> nn.Module:
        """A copy in PyTorch's default memory layout, as other libraries' users hold it."""
        return self.fresh().to(memory_format=torch.contiguous_format)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a batch, the same for the same number; after the last comes the first again."""
        count, size = len(self.images), self.scale.batch
        rows = torch.arange(number * size, (number + 1) * size, device=self.device) % count
        return self.images[rows], self.labels[rows]


def _some(split: ImageSet, scale: Scale, device: torch.device) -> tuple[Tensor, Tensor]:
    """As many images as the scale has, stratified and in a random order, and their labels."""
    rows = torch.from_numpy(representatives(split.labels, scale.images))
    rows = rows[epoch_order(len(rows), 0, 0, "benchmark")]
    images, labels = split.tensors()
    return _resized(to_pixels(images[rows].to(device)), scale.shape), labels[rows].to(device)


def _resized(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = shape
    resized = F.interpolate(images, (height, width), mode="bilinear", align_corners=False).clamp(0.0, 1.0)
    return resized if resized.shape[1] == channels else resized.mean(1, keepdim=True).repeat(1, channels, 1, 1)
