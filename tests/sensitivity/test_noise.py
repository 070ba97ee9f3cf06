from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distsens.errors import InputError
from distsens.randomness import sample_keys
from distsens.sensitivity import NoiseNorm, same_norm_noise

ORDERS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}


def pairs(seed: int, count: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 2, 5, 5, generator=generator).mul(1.4).sub(0.2).clamp(0, 1)  # many at the ends
    change = (torch.rand(images.shape, generator=generator) - 0.5) * 2 * eps
    return images, (images + change).clamp(0, 1), sample_keys(torch.arange(count), seed)


@settings(max_examples=40)
@given(norm=st.sampled_from(["linf", "l2", "l1"]), seed=st.integers(0, 2**31), eps=st.floats(0.0, 0.6))
def test_noise_is_as_large_as_the_attack_and_inside_the_pixels(norm: NoiseNorm, seed: int, eps: float) -> None:
    images, adversarial, keys = pairs(seed, 4, eps)
    noisy = same_norm_noise(images, adversarial, norm, keys)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    wanted = torch.linalg.vector_norm((adversarial - images).flatten(1), ord=ORDERS[norm], dim=1)
    found = torch.linalg.vector_norm((noisy - images).flatten(1), ord=ORDERS[norm], dim=1)
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_noise_belongs_to_the_image_not_to_the_batch(norm: NoiseNorm) -> None:
    images, adversarial, keys = pairs(0, 5, 0.3)
    together = same_norm_noise(images, adversarial, norm, keys)
    alone = same_norm_noise(images[3:4], adversarial[3:4], norm, keys[3:4])
    assert torch.allclose(together[3:4], alone, atol=1e-6)
    assert not torch.equal(together - images, adversarial - images)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_directions_have_no_preference(norm: NoiseNorm) -> None:
    images = torch.full((2000, 1, 2, 2), 0.5)
    noise = same_norm_noise(images, images + 0.1, norm, sample_keys(torch.arange(2000), 1)) - images
    assert noise.mean(0).abs().max() < 0.01


def test_an_unchanged_image_stays_and_an_unknown_norm_is_refused() -> None:
    images, _, keys = pairs(0, 3, 0.1)
    for norm in ("linf", "l2", "l1"):
        assert torch.allclose(same_norm_noise(images, images, norm, keys), images, atol=1e-6)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threat"):
        same_norm_noise(images, images, "l3", keys)  # type: ignore[arg-type]
