from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from distsens.randomness import normal, sample_keys, uniform

_SEEDS = st.integers(-(2**61), 2**61 - 1)
_SIGNIFICANCE = 1e-3  # The numbers are fixed, so that these tests cannot fail by chance from run to run.


def _splitmix64(seed: int, count: int) -> list[int]:
    """The published algorithm, word for word in Python's own integers."""
    mask, state, outputs = 2**64 - 1, seed, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        outputs.append(z ^ (z >> 31))
    return outputs


def test_the_reference_gives_the_published_first_outputs_of_splitmix64() -> None:
    assert _splitmix64(0, 3) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_row_holds_the_upper_24_bits_of_splitmix64_seeded_with_the_key(key: int) -> None:
    row = uniform(torch.tensor([key]), (5,))[0]
    assert row.tolist() == [(output >> 40) / 2**24 for output in _splitmix64(key % 2**64, 5)]


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_row_depends_on_its_key_alone(draw: Callable[[Tensor, tuple[int, ...]], Tensor]) -> None:
    keys = sample_keys(torch.arange(50), 7, "attack")
    rows = draw(keys, (3, 4, 4))
    torch.manual_seed(123)
    torch.testing.assert_close(draw(keys[10:20], (3, 4, 4)), rows[10:20], rtol=0, atol=0)
    torch.testing.assert_close(draw(keys.flip(0), (3, 4, 4)), rows.flip(0), rtol=0, atol=0)
    torch.testing.assert_close(draw(keys[[5]], (3, 4, 4)), rows[[5]], rtol=0, atol=0)
    assert rows.shape == (50, 3, 4, 4)
    assert rows.dtype == torch.float32
    assert len(rows.flatten(1).unique(dim=0)) == 50


def test_a_key_depends_on_its_sample_and_context_alone() -> None:
    samples = torch.tensor([3, 1, 4, 1, 5, 2**40, -1])
    keys = sample_keys(samples, 0, 2, "flip")
    torch.manual_seed(123)
    assert torch.equal(sample_keys(samples[2:5], 0, 2, "flip"), keys[2:5])
    assert keys[1] == keys[3]
    assert keys.dtype == torch.int64
    assert torch.equal(sample_keys(samples.to(torch.int32)[:5], 0, 2, "flip"), keys[:5])


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = normal(sample_keys(torch.arange(4), 1), (8,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(normal(sample_keys(torch.arange(4), 1), (8,)), first)


def test_samples_seeds_epochs_and_purposes_never_share_a_key() -> None:
    contexts = list(itertools.product(range(5), range(8), ("attack", "crop", "flip")))
    keys = torch.cat([sample_keys(torch.arange(2_000), *context) for context in contexts])
    assert len(keys.unique()) == len(keys) == 240_000


@given(_SEEDS, _SEEDS)
def test_different_seeds_and_different_orders_give_different_keys(first: int, second: int) -> None:
    samples = torch.arange(3)
    same = first == second
    assert torch.equal(sample_keys(samples, first), sample_keys(samples, second)) == same
    assert torch.equal(sample_keys(samples, first, second), sample_keys(samples, second, first)) == same
    assert not torch.equal(sample_keys(samples, first), sample_keys(samples, first, 0))


@pytest.mark.parametrize("consecutive", [True, False], ids=["raw keys", "sample keys"])
def test_uniform_numbers_are_uniform_and_below_one(consecutive: bool) -> None:
    keys = torch.arange(2_000) if consecutive else sample_keys(torch.arange(2_000), 0, "start")
    numbers = uniform(keys, (50,))
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > _SIGNIFICANCE
    assert stats.kstest(numbers[:, 0].numpy(), "uniform").pvalue > _SIGNIFICANCE
    assert stats.kstest(numbers[0].numpy(), "uniform").pvalue > _SIGNIFICANCE


def test_normal_numbers_are_normal() -> None:
    numbers = normal(sample_keys(torch.arange(2_000), 0, "start"), (50,))
    assert torch.isfinite(numbers).all()
    assert stats.kstest(numbers.flatten().numpy(), "norm").pvalue > _SIGNIFICANCE
    assert stats.kstest(numbers[:, 0].numpy(), "norm").pvalue > _SIGNIFICANCE


@pytest.mark.parametrize("draw", [uniform, normal])
def test_neighbouring_pixels_samples_and_epochs_are_uncorrelated(
    draw: Callable[[Tensor, tuple[int, ...]], Tensor],
) -> None:
    now, later = (draw(sample_keys(torch.arange(2_000), 0, epoch), (20,)) for epoch in (0, 1))
    bound = 4.0 / (2_000 * 20) ** 0.5  # Four standard deviations of a correlation of independent numbers.
    for left, right in ((now[:, 1:], now[:, :-1]), (now[1:], now[:-1]), (now, later)):
        correlation = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1]
        assert abs(correlation) < bound


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_numbers() -> None:
    keys = sample_keys(torch.arange(100), 0, "start")
    assert torch.equal(sample_keys(torch.arange(100, device="cuda"), 0, "start").cpu(), keys)
    assert torch.equal(uniform(keys.cuda(), (3, 8, 8)).cpu(), uniform(keys, (3, 8, 8)))
    torch.testing.assert_close(normal(keys.cuda(), (3, 8, 8)).cpu(), normal(keys, (3, 8, 8)), rtol=1e-5, atol=1e-5)
