"""Stratified splits: every class keeps its share, and the seed alone says which samples go where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from distsens.errors import InputError
from distsens.randomness import sample_keys


def stratified_sample(labels: npt.NDArray[np.int64], count: int, seed: int, purpose: str) -> npt.NDArray[np.int64]:
    """The numbers of ``count`` samples in which every class has its share, in increasing order.

    A class with n of N samples gets n * count / N, rounded down or up: the largest remainders are rounded up, ties
    go to the smaller label.

    Parameters
    ----------
    labels : int64 array (N,).
    count : how many samples to draw, 0 to N.
    seed, purpose : what the choice depends on; draws for different purposes are independent.
    """
    if count == 0:
        return np.arange(0)
    classes, sizes = np.unique(labels, return_counts=True)
    # In whole numbers: floating point would break ties between equal remainders at random.
    quotas, remainders = np.divmod(sizes * count, len(labels))
    quotas[np.argsort(-remainders, kind="stable")[: count - quotas.sum()]] += 1

    keys = sample_keys(torch.arange(len(labels)), seed, purpose).numpy()
    chosen = []
    for label, quota in zip(classes, quotas, strict=True):
        members = np.flatnonzero(labels == label)
        chosen.append(members[np.argsort(keys[members])[:quota]])
    return np.sort(np.concatenate(chosen))


def representatives(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """The numbers of ``count`` samples, or of all if they are fewer, that stand for all of them where all are too many.

    Every class has its share, see `stratified_sample`. They are always the same: neither a run's seed nor a model
    decides which images it is looked at on.
    """
    return stratified_sample(labels, min(count, len(labels)), 0, "representatives")


def hold_out(
    labels: npt.NDArray[np.int64],
    fraction: float,
    seed: int,
    purpose: str = "validation",
    classes: Sequence[str] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split the samples into those that are kept for training and those that are held out.

    Parameters
    ----------
    labels : int64 array (N,).
    fraction : the share to hold out, inside (0, 1); round(fraction * N) samples, stratified by label.
    seed : what the choice depends on.
    purpose : what they are held out for, validation or test; draws for different purposes are independent.
    classes : names of the classes, for messages; by default their numbers.

    Returns
    -------
    kept, held_out : numbers of samples in increasing order, disjoint, together all N.

    Raises
    ------
    InputError
        If the fraction is not inside (0, 1), or leaves a class without an image on either side.
    """
    field = f"data.{purpose}_fraction"
    if not 0 < fraction < 1:
        raise InputError(field, fraction, "must be greater than 0 and less than 1")
    held_out = stratified_sample(labels, round(fraction * len(labels)), seed, purpose)
    kept = np.setdiff1d(np.arange(len(labels)), held_out, assume_unique=True)
    present, sizes = np.unique(labels, return_counts=True)
    for label, size in zip(present.tolist(), sizes.tolist(), strict=True):
        if not ((labels[kept] == label).any() and (labels[held_out] == label).any()):
            name = repr(classes[label]) if classes is not None and 0 <= label < len(classes) else label
            what = f"class {name} has {size} image{'s' * (size > 1)}{', too few to be split' * (size < 2)}"
            allowed = f"must leave each of {len(present)} classes an image on both sides; {what}"
            raise InputError(field, fraction, allowed)
    return kept, held_out
