"""Data sets by name. To add one, write a reader and enter it in ``DATASETS``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from distsens.data import colour, digits, folder, mnist_family, npz
from distsens.data.files import ImageFiles
from distsens.data.images import Dataset, ImageSet, Published
from distsens.data.source import Source
from distsens.data.split import hold_out, stratified_sample
from distsens.errors import InputError

Reader = Callable[[Source], Published]
"""Reads the published splits."""

DATASETS: dict[str, Reader] = {
    "digits": digits.read,
    "mnist": partial(mnist_family.read, "MNIST"),
    "fashion_mnist": partial(mnist_family.read, "FashionMNIST"),
    "kmnist": partial(mnist_family.read, "KMNIST"),
    "cifar10": partial(colour.cifar, "CIFAR10"),
    "cifar100": partial(colour.cifar, "CIFAR100"),
    "svhn": colour.svhn,
    "folder": folder.read,
    "npz": npz.read,
}


def load(
    name: str,
    source: Source,
    *,
    validation_fraction: float | None,
    seed: int,
    limit: int | None = None,
    extra: Path | None = None,
) -> Dataset:
    """Read a data set and hold a validation set out of its training images.

    Parameters
    ----------
    name : one of ``DATASETS``.
    source : where the files are and how to read them.
    validation_fraction : the share of the training images to hold out, inside (0, 1), stratified by label; of data
        that is only judged and has none, the share of all images. None holds none out.
    seed : decides which images are held out, and which ones ``limit`` keeps.
    limit : train on this many images, stratified, for quick runs; None for all. It is applied after the split, so
        validation and test stay whole and their accuracies stay comparable.
    extra : an .npz file of extra images, which are trained on and neither validated nor tested on; ``limit`` leaves
        them alone. The training set holds them last, after the data set's own images.

    Raises
    ------
    InputError
        If the name is unknown, files are missing or unreadable, the fraction or the limit does not fit, or the extra
        images differ from the data set's in shape or classes.
    """
    if name not in DATASETS:
        raise InputError("data.name", name, f"must be one of {', '.join(DATASETS)}")
    if source.image_size is not None and name != "folder":
        raise InputError("data.image_size", source.image_size, f"is for data.name folder; {name} has its own size")
    published = DATASETS[name](source)
    train, validation, test = _with_validation(published, validation_fraction, seed)
    if limit is not None:
        train = _limited(train, limit, seed)
    dataset = Dataset(name, published.classes, train, validation, test, left_out=published.left_out)
    return dataset if extra is None else _with_extra(dataset, extra)


def _with_validation(published: Published, fraction: float | None, seed: int) -> tuple[ImageSet, ImageSet, ImageSet]:
    train, test = published.train, published.test
    if fraction is None:
        return train, train.take(np.arange(0)), test
    if len(train) > 0:
        kept, held_out = hold_out(train.labels, fraction, seed)
        return train.take(kept), train.take(held_out), test
    # Images that are only judged may be too few for one of every class.
    count = max(1, round(fraction * len(test)))
    if count >= len(test):
        raise InputError("data.validation_fraction", fraction, f"must leave some of {len(test)} images to be judged")
    held_out = stratified_sample(test.labels, count, seed, "validation")
    kept = np.setdiff1d(np.arange(len(test)), held_out, assume_unique=True)
    return train, test.take(held_out), test.take(kept)


def _with_extra(dataset: Dataset, path: Path) -> Dataset:
    """The data set with the extra images of this file after its training images."""
    extra = npz.read_extra(path)
    if extra.shape != dataset.shape:
        raise InputError("data.extra", str(path), f"must hold images of shape {dataset.shape}, not {extra.shape}")
    if not np.isin(extra.labels, np.arange(len(dataset.classes))).all() or len(extra) == 0:
        raise InputError("data.extra", str(path), f"must hold images with labels 0 to {len(dataset.classes) - 1}")
    own, more = dataset.train.images, extra.images
    if isinstance(own, ImageFiles) or isinstance(more, ImageFiles):
        raise InputError("data.extra", str(path), "needs the data set's images in memory; raise data.memory")
    train = ImageSet(np.concatenate([own, more]), np.concatenate([dataset.train.labels, extra.labels]))
    return dataclasses.replace(dataset, train=train, extra=len(extra))


def _limited(train: ImageSet, limit: int, seed: int) -> ImageSet:
    if not 1 <= limit <= len(train):
        raise InputError("data.limit", limit, f"must be 1 to {len(train)}, the number of training images")
    return train.take(stratified_sample(train.labels, limit, seed, "limit"))
