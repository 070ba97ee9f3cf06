"""How images are shared out: what is done together, kept together, and lost together when a process dies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from distsens.experiment import Workers

# So that a slow one is made up for by the others, and a fast network is not kept waiting by tiny batches.
_SHARDS_OF_A_WORKER = (2, 4)
_SMALLEST = 10
# A CPU gains nothing by larger batches; a GPU takes whole ones.
_LARGEST_ON_CPU = 50


def largest_shard(workers: Workers, batch_size: int) -> int:
    """The most images that are worth being done together."""
    return batch_size if workers.gpus else min(batch_size, _LARGEST_ON_CPU)


def share_out_batches(images: int, workers: int, batch_size: int, size: int | None = None) -> list[range]:
    """The first images in shards of whole batches, so that a batch holds the same images whoever takes it."""
    if size is not None:
        return [range(start, min(start + size, images)) for start in range(0, images, size)]
    batches = range(-(-images // batch_size))
    largest = max(1, _LARGEST_ON_CPU // batch_size)
    shards = share_out(batches, workers, largest, smallest=1)
    return [range(one[0] * batch_size, min((one[-1] + 1) * batch_size, images)) for one in shards]


def share_out(
    numbers: Sequence[int], workers: int, largest: int, size: int | None = None, *, smallest: int = _SMALLEST
) -> list[list[int]]:
    """Images, or whatever the numbers are of, in shards, in their order.

    Every worker gets as many shards as the others, two or more unless there are fewer images, none larger than
    ``largest``, and all but equal: a process that dies loses one of them, and none waits long for the last.

    Parameters
    ----------
    size : of all shards but the last, where it was asked for.
    smallest : what is worth being done together, unless a worker would idle.
    """
    count = len(numbers)
    if size is not None:
        return [list(numbers[start : start + size]) for start in range(0, count, size)]
    least, most = (shards * workers for shards in _SHARDS_OF_A_WORKER)
    wanted = max(least, min(most, count // smallest), -(-count // largest))
    shards = min(count, -(-wanted // workers) * workers)
    ends = [count * number // shards for number in range(shards + 1)] if shards else [0]
    return [list(numbers[start:end]) for start, end in pairwise(ends)]
