"""Small networks that learnt the digits, and parts that hide their gradients."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from distsens.attacks import GradientAttack, Threat
from distsens.objectives import pgd_at, standard
from distsens.randomness import sample_keys
from distsens.sensitivity import Stabilizer, Stabilizing, match_layers, neuron_counts
from distsens.training import Batch, TrainingStep

THREAT = Threat("linf", 0.15)
STABILIZING = Stabilizing(ratio=0.1, pairs=0.25)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All images (N, 1, 8, 8) in [0, 1], and their labels."""
    loaded = load_digits()
    return torch.tensor(loaded.images, dtype=torch.float32).unsqueeze(1) / 16.0, torch.tensor(loaded.target)


def part(start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Some of them; the networks were trained on the first 1,000."""
    images, labels = digits()
    return images[start:stop], labels[start:stop]


@cache
def plain() -> nn.Module:
    """Trained on benign images, for an epoch or two longer than it takes to be right."""
    return _trained(4, None, robust=False)


@cache
def stabilized() -> nn.Module:
    """Trained on PGD's examples, with a strong stabilizing term."""
    return _trained(6, 5.0, robust=True)


def _trained(epochs: int, weight: float | None, *, robust: bool) -> nn.Module:
    images, labels = part(0, 1000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
    layers = match_layers(model, "auto", images[:1])
    stabilizer = Stabilizer(STABILIZING, neuron_counts(model, layers, images[:1])) if weight else None
    step = TrainingStep(
        model,
        torch.optim.Adam(model.parameters(), lr=4e-3),
        pgd_at() if robust else standard(),
        GradientAttack(THREAT, 3, 0.08),
        stabilizer,
        layers,
    )
    for epoch in range(epochs):
        step.begin_epoch()
        for rows in torch.argsort(sample_keys(torch.arange(len(images)), epoch)).split(64):
            batch = Batch(images[rows], labels[rows], sample_keys(rows, epoch), len(rows))
            step(batch, sns_weight=weight)
        if stabilizer is not None:
            stabilizer.refresh()
    return model.eval()


class Quantized(nn.Module):
    """The network behind pixels rounded to eighths, through which no gradient passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images * 8).round() / 8)
        return logits


class Scaled(nn.Module):
    """The network with logits so large that the cross-entropy is zero wherever it is right."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = 1e4 * self.network(images)
        return logits


class Rippled(nn.Module):
    """The network behind pixels to which a small, fast wave was added: its loss rises and falls on every short way."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images + 0.02 * torch.sin(400.0 * images))
        return logits
