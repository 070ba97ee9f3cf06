"""The global order of samples and each worker's share of it: no number here depends on who computes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distsens.errors import InputError
from distsens.randomness import sample_keys


@dataclass(frozen=True)
class Extra:
    """Extra images to train on, which follow the data set's own in the training set.

    images : how many there are.
    per_batch : how many of them each global batch has; the rest are the data set's own.
    """

    images: int = 0
    per_batch: int = 0


NO_EXTRA = Extra()


def epoch_order(count: int, seed: int, epoch: int, *purpose: str | int) -> Tensor:
    """The order in which all workers together visit the samples: an int64 permutation of 0..count-1, on the CPU.

    It depends on its arguments alone and leaves PyTorch's global generator untouched.
    """
    key = sample_keys(torch.tensor([epoch]), seed, "order", *purpose).item()
    return torch.randperm(count, generator=torch.Generator().manual_seed(int(key)))


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int, extra: Extra = NO_EXTRA) -> Tensor:
    """The global batches of an epoch, by sample number: int64 (steps, batch_size), on the CPU.

    An epoch goes once over the data set's own images. Extra ones are spread evenly over each batch, so that each worker
    gets its part of them, and move on by a place from batch to batch, so that every place has its part of them: SNS
    compares the images at some places only. They come in an order of their own, anew each epoch; only if
    there are fewer than the epoch needs do some return within it.

    Parameters
    ----------
    count : training images, the extra ones included.
    batch_size : images in a batch, over all workers together.
    seed, epoch : what the order depends on.
    extra : by default none.

    Raises
    ------
    InputError
        If the samples do not fill one batch.
    """
    steps = steps_per_epoch(count, batch_size, extra)
    own_images, own_per_batch = count - extra.images, batch_size - extra.per_batch
    own = epoch_order(own_images, seed, epoch)[: steps * own_per_batch].reshape(steps, own_per_batch)
    if extra.per_batch == 0:
        return own
    rounds = -(-steps * extra.per_batch // extra.images)
    orders = torch.cat([epoch_order(extra.images, seed, epoch, "extra", number) for number in range(rounds)])
    places = torch.arange(batch_size) + torch.arange(steps)[:, None]
    is_extra = places * extra.per_batch % batch_size < extra.per_batch
    batches = torch.empty(steps, batch_size, dtype=torch.int64)
    batches[~is_extra] = own.flatten()
    batches[is_extra] = own_images + orders[: steps * extra.per_batch]
    return batches


def steps_per_epoch(count: int, batch_size: int, extra: Extra = NO_EXTRA) -> int:
    """How many full global batches an epoch has. The incomplete last one is dropped: every step weighs the same.

    Arguments as for `epoch_batches`.

    Raises
    ------
    InputError
        If the samples do not fill one batch.
    """
    own_images, own_per_batch = count - extra.images, batch_size - extra.per_batch
    if not 1 <= own_per_batch <= own_images:
        most = own_images + extra.per_batch
        extras = f" and the {extra.per_batch} extra ones of a batch" if extra.per_batch else ""
        raise InputError(
            "training.batch_size",
            batch_size,
            f"must be {1 + extra.per_batch} to {most}, the number of training images{extras}",
        )
    return own_images // own_per_batch


def rank_share(count: int, rank: int, world_size: int) -> slice:
    """The part of ``count`` consecutive samples that belongs to one worker.

    The shares follow one another in rank order, cover every sample exactly once, and differ in size by at most one.

    Raises
    ------
    InputError
        If there is no such rank.
    """
    if not 0 <= rank < world_size:
        raise InputError("rank", rank, f"must be 0 to {world_size - 1}")
    return slice(count * rank // world_size, count * (rank + 1) // world_size)
