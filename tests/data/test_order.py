from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distsens.data import Extra, epoch_batches, epoch_order, rank_share, steps_per_epoch
from distsens.errors import InputError


@given(st.integers(0, 300), st.integers(0, 2**62), st.integers(0, 1000))
def test_an_order_is_a_permutation_that_its_arguments_determine(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(count))
    assert torch.equal(order, epoch_order(count, seed, epoch))


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_order(100, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_an_order_neither_reads_nor_moves_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    order = epoch_order(50, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(epoch_order(50, 0, 0), order)


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(10, 5, 2), (10, 3, 3), (10, 10, 1), (1, 1, 1)])
def test_an_epoch_has_full_batches_only(count: int, batch_size: int, steps: int) -> None:
    assert steps_per_epoch(count, batch_size) == steps


@pytest.mark.parametrize("batch_size", [11, 0, -1])
def test_a_batch_that_cannot_be_filled_is_refused(batch_size: int) -> None:
    with pytest.raises(InputError) as error:
        steps_per_epoch(10, batch_size)
    assert error.value.field == "training.batch_size"


@given(st.integers(0, 1000), st.integers(1, 40))
def test_the_shares_follow_one_another_and_differ_by_at_most_one(count: int, world_size: int) -> None:
    samples = list(range(count))
    shares = [samples[rank_share(count, rank, world_size)] for rank in range(world_size)]
    assert [sample for share in shares for sample in share] == samples
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_the_world_is_refused(rank: int) -> None:
    with pytest.raises(InputError, match="must be 0 to 1"):
        rank_share(10, rank, 2)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[int, int, Extra]:
    """Training images (the extra ones included), batch size and extra images."""
    batch_size = draw(st.integers(2, 40))
    extra = Extra(draw(st.integers(1, 60)), draw(st.integers(1, batch_size - 1)))
    own = draw(st.integers(batch_size - extra.per_batch, 100))
    return own + extra.images, batch_size, extra


@given(st.integers(1, 100), st.integers(0, 2**40), st.integers(1, 100), st.data())
def test_without_extra_images_the_batches_are_the_order_cut_in_pieces(
    count: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    batch_size = data.draw(st.integers(1, count))
    batches = epoch_batches(count, batch_size, seed, epoch)
    assert batches.shape == (count // batch_size, batch_size)
    assert torch.equal(batches.flatten(), epoch_order(count, seed, epoch)[: batches.numel()])


@given(mixtures(), st.integers(0, 2**40), st.integers(1, 100))
def test_every_batch_has_its_part_of_extra_images_and_an_epoch_its_own_images_once(
    mixture: tuple[int, int, Extra], seed: int, epoch: int
) -> None:
    count, batch_size, extra = mixture
    own = count - extra.images
    batches = epoch_batches(count, batch_size, seed, epoch, extra)
    assert batches.shape == (steps_per_epoch(count, batch_size, extra), batch_size)
    assert len(batches) == own // (batch_size - extra.per_batch)
    assert ((batches >= own).sum(1) == extra.per_batch).all()
    seen = batches[batches < own]
    assert len(seen.unique()) == len(seen) == len(batches) * (batch_size - extra.per_batch)
    drawn = torch.bincount(batches[batches >= own] - own, minlength=extra.images)
    assert drawn.max() - drawn.min() <= 1
    assert torch.equal(batches, epoch_batches(count, batch_size, seed, epoch, extra))


@given(mixtures(), st.integers(1, 8))
def test_every_worker_gets_its_part_of_the_extra_images(mixture: tuple[int, int, Extra], workers: int) -> None:
    count, batch_size, extra = mixture
    batch = epoch_batches(count, batch_size, 0, 1, extra)[0]
    for rank in range(workers):
        share = batch[rank_share(batch_size, rank, workers)]
        expected = len(share) * extra.per_batch / batch_size
        assert abs(int((share >= count - extra.images).sum()) - expected) < 1


@pytest.mark.parametrize("per_batch", [1, 7, 16, 32, 64, 96, 115])
@pytest.mark.parametrize("every", [1, 2, 3, 16])
def test_the_places_that_are_compared_have_their_part_of_the_extra_images(per_batch: int, every: int) -> None:
    own, batch_size, steps = 128 * 130, 128, 128
    batches = epoch_batches(own + 500, batch_size, 0, 1, Extra(500, per_batch))[:steps]
    compared = batches[:, ::every] >= own
    assert float(compared.double().mean()) == pytest.approx(per_batch / batch_size)


def test_extra_images_come_in_another_order_each_epoch_and_for_each_seed() -> None:
    orders = set()
    for seed in range(3):
        for epoch in range(3):
            batches = epoch_batches(50 + 1000, 10, seed, epoch, Extra(1000, 5))
            orders.add(tuple(batches[batches >= 50].tolist()))
    assert len(orders) == 9


def test_a_batch_without_an_epoch_is_refused_with_extra_images_too() -> None:
    assert steps_per_epoch(10 + 5, 12, Extra(5, 2)) == 1
    with pytest.raises(InputError, match="must be 3 to 12, the number of training images and the 2 extra ones"):
        steps_per_epoch(10 + 5, 13, Extra(5, 2))
