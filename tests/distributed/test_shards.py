"""Shards of images: nobody idles, little is lost, and every image is done once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsens.distributed.shards import largest_shard, share_out, share_out_batches
from distsens.experiment import Workers


@given(st.integers(0, 3000), st.integers(1, 20), st.integers(1, 300), st.none() | st.integers(1, 300))
def test_every_image_is_in_one_shard_in_order_and_no_worker_idles(
    images: int, workers: int, largest: int, size: int | None
) -> None:
    numbers = range(7, 7 + images)
    shards = share_out(numbers, workers, largest, size)
    assert [number for shard in shards for number in shard] == list(numbers)
    sizes = [len(shard) for shard in shards]
    assert 0 not in sizes
    if size is not None:
        assert sizes[:-1] == [size] * (len(sizes) - 1)
        return
    if images >= 2 * workers:
        assert len(shards) % workers == 0 or len(shards) == images
        assert len(shards) >= 2 * workers, "a kill loses half of a worker's images at most"
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= largest
    else:
        assert sizes == [1] * images


@pytest.mark.parametrize(
    ("images", "workers", "sizes"),
    [(40, 2, [10] * 4), (200, 2, [25] * 8), (100, 1, [25] * 4), (1000, 2, [50] * 20), (10, 1, [5, 5]), (1, 4, [1])],
)
def test_how_many_images_are_done_together(images: int, workers: int, sizes: list[int]) -> None:
    assert [len(shard) for shard in share_out(range(images), workers, 50)] == sizes


def test_a_gpu_takes_whole_batches() -> None:
    assert largest_shard(Workers(gpus=1), 250) == 250
    assert largest_shard(Workers(gpus=0), 250) == 50
    assert largest_shard(Workers(gpus=0), 8) == 8
    assert [len(shard) for shard in share_out(range(10_000), 4, 250)] == [250] * 40


@given(st.integers(0, 500), st.integers(1, 8), st.integers(1, 64), st.none() | st.integers(1, 100))
def test_a_batch_holds_the_same_images_however_many_workers_there_are(
    images: int, workers: int, batch: int, size: int | None
) -> None:
    shards = share_out_batches(images, workers, batch, size)
    assert [number for shard in shards for number in shard] == list(range(images))
    if size is None:
        assert all(shard.start % batch == 0 for shard in shards)
        assert len(shards) >= min(2 * workers, -(-images // batch))
