"""Noise, independent for every pixel and channel."""

from __future__ import annotations

import torch
from torch import Tensor

from distsens.data.corruptions.family import Family
from distsens.randomness import normal, uniform


def _gaussian_noise(images: Tensor, keys: Tensor, deviation: float) -> Tensor:
    """``x + deviation * n`` with n standard normal: noise of low light."""
    return images + deviation * normal(keys, images.shape[1:])


def _shot_noise(images: Tensor, keys: Tensor, photons: float) -> Tensor:
    """``Poisson(photons * x) / photons``: light comes in photons, ``photons`` of them for a white pixel.

    The 256 distribution functions lie one above the other in one ascending table, where a search inverts them.
    """
    greys = (255 * images).round().to(torch.int64)
    means = photons / 255 * torch.arange(256, dtype=torch.float64, device=images.device)[:, None]
    # Uniform numbers of 24 bits do not see beyond 5.4 standard deviations.
    counts = torch.arange(int(photons + 10 * photons**0.5 + 20), dtype=torch.float64, device=images.device)
    table = torch.exp(torch.xlogy(counts, means) - means - torch.lgamma(counts + 1)).cumsum(1)
    table += torch.arange(256, dtype=torch.float64, device=images.device)[:, None]
    drawn = torch.searchsorted(table.flatten(), greys + uniform(keys, images.shape[1:]).double(), right=True)
    return (drawn - greys * len(counts)) / photons


def _impulse_noise(images: Tensor, keys: Tensor, part: float) -> Tensor:
    """Salt and pepper: ``part`` of the values become 0 or 1, either equally likely."""
    drawn = uniform(keys, images.shape[1:])
    return torch.where(drawn < part, (drawn < part / 2).double(), images)


NOISE = {
    "gaussian_noise": Family(
        _gaussian_noise,
        small=((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
        large=((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    ),
    "shot_noise": Family(
        _shot_noise,
        small=((500,), (250,), (100,), (75,), (50,)),
        large=((60,), (25,), (12,), (5,), (3,)),
    ),
    "impulse_noise": Family(
        _impulse_noise,
        small=((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        large=((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    ),
}
