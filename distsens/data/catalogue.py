"""Data sets by name. To add one, write a reader and enter it in ``DATASETS``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distsens.data import colour, digits, folder, mnist_family, npz
from distsens.data.files import ImageFiles
from distsens.data.images import Dataset, ImageSet, Published
from distsens.data.source import Source
from distsens.data.split import hold_out, stratified_sample
from distsens.errors import InputError

_TEST_SEED = 0
"""The test split is always the same, whatever the seed of a run, so that results can be compared."""
_VALIDATION_FRACTION = 0.1

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
    validation_fraction: float | None = None,
    seed: int,
    holds_out: bool = True,
    limit: int | None = None,
    extra: Path | None = None,
) -> Dataset:
    """Read a data set, and hold out of its training images the splits that it has not.

    A given validation split is the validation split. With a ``validation_fraction`` one is held out of the training
    images all the same; the given one is then the test split, if there is no other.

    Parameters
    ----------
    name : one of ``DATASETS``.
    source : where the files are and how to read them.
    validation_fraction : the share of the training images to hold out, inside (0, 1), stratified by label; of data
        that is only judged and has none, the share of all images. None takes the validation split that is given, else
        a tenth.
    seed : decides which images are held out, and which ones ``limit`` keeps.
    holds_out : whether a validation split is held out where none is given.
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
    for field in ("image_size", "resize"):
        if (given := getattr(source, field)) is not None and name != "folder":
            raise InputError(f"data.{field}", given, f"is for data.name folder; {name} has its own size")
    fit = source.fit  # refuses what does not fit together
    if fit.interpolation != "bilinear" and name != "folder":
        raise InputError("data.interpolation", fit.interpolation, f"is for data.name folder; {name} has its own size")
    published = DATASETS[name](source)
    splits = _splits(published, source, validation_fraction, seed, holds_out=holds_out)
    train = splits.train if limit is None else _limited(splits.train, limit, seed)
    if not source.judged:
        _check_trainable(name if source.root is None else str(source.root), published.classes, splits)
    dataset = Dataset(
        name,
        published.classes,
        train,
        splits.validation,
        splits.test,
        own_validation=splits.own_validation,
        left_out=published.left_out,
        notices=(*published.notices, *splits.notices),
    )
    return dataset if extra is None else _with_extra(dataset, extra)


class _Splits(NamedTuple):
    """All three, empty where there are none, and what is to be said of them."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    own_validation: bool
    notices: tuple[str, ...]


def _splits(published: Published, source: Source, fraction: float | None, seed: int, *, holds_out: bool) -> _Splits:
    _, train, test, validation, *_ = published
    notices = []
    if fraction is not None and validation is not None:
        role = "the test split" if test is None else "left out"
        notices.append(
            f"data.validation_fraction is given, so validation is held out of the training images, and the given "
            f"validation split is {role}"
        )
        test, validation = (validation if test is None else test), None
    if test is None and source.judged:
        test = train.take(np.arange(0))
    elif test is None:
        kept, held_out = hold_out(train.labels, source.test_fraction, _TEST_SEED, "test", published.classes)
        if validation is not None:
            notices.append(
                f"there is a validation and no test split: {len(held_out)} training images are held out as the test "
                "split (data.test_fraction)"
            )
        train, test = train.take(kept), train.take(held_out)
    own = validation is not None
    if validation is None and holds_out:
        fraction = _VALIDATION_FRACTION if fraction is None else fraction
        train, validation, test = _with_validation(train, test, fraction, seed, published.classes)
    none = train.take(np.arange(0))
    return _Splits(train, none if validation is None else validation, test, own, tuple(notices))


def _check_trainable(root: str, classes: Sequence[str], splits: _Splits) -> None:
    """Refuse what a training would find out at its end, or never."""
    if len(classes) < 2:
        raise InputError("data.root", root, f"must hold images of two classes or more; all are of class {classes[0]}")
    for split, images in (("validation", splits.validation), ("test", splits.test)):
        if len(images) == 0 and not (split == "validation" and not splits.own_validation):
            raise InputError("data.root", root, f"its {split} split must hold images, or not be there at all")


def _with_validation(
    train: ImageSet, test: ImageSet, fraction: float, seed: int, classes: Sequence[str]
) -> tuple[ImageSet, ImageSet, ImageSet]:
    if len(train) > 0:
        kept, held_out = hold_out(train.labels, fraction, seed, classes=classes)
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
