"""A small network of the digits that an attack fools, and its pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from distsens.attacks import GradientAttack, Threat, attack_named

THREAT = Threat("linf", 0.2)


@dataclass(frozen=True)
class Digits:
    """A trained network, and 60 images that it was not trained on with their twins under PGD."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    twins: Tensor
    attack: GradientAttack


@cache
def trained(seed: int) -> nn.Module:
    """Trained for three epochs on the first 1,000 digits."""
    images, labels = digits(0, 1000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU(inplace=True),
            nn.Flatten(), nn.Linear(108, 20), nn.ReLU(), nn.Linear(20, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for rows in torch.cat([torch.randperm(1000) for _ in range(4)]).split(50):
            optimizer.zero_grad()
            cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def digits(start: int, stop: int) -> tuple[Tensor, Tensor]:
    loaded = load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32).unsqueeze(1) / 16.0
    return images[start:stop], torch.tensor(loaded.target)[start:stop].long()


@cache
def small_digits() -> Digits:
    images, labels = digits(1000, 1060)
    model = trained(0)
    attack = attack_named("pgd", THREAT, steps=5)
    return Digits(model, images, labels, attack(model, images, labels, keys=torch.arange(60)), attack)
