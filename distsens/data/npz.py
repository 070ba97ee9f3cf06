"""Images in NumPy's .npz files: a whole data set, or extra images to train on. Nothing in them is unpickled."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distsens.data.images import ImageSet, Published
from distsens.data.source import Source
from distsens.errors import InputError
from distsens.strict_npz import load_npz, names_in

_CHANNELS = (1, 3)
_ALONE = (("images", "labels"), ("image", "label"))
_PREFIXES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}

Pairs = Mapping[str, tuple[str, str]]
"""By what they are for, the keys of images and labels."""


def read(source: Source) -> Published:
    """A file with ``train_images``, ``train_labels``, and the same of ``test`` and ``val``, as MedMNIST has them.

    Images are uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with one or three channels; labels are whole
    numbers from 0 on, of shape (N,) or (N, 1). Classes are called after their numbers. Anything else in the file is
    left alone.

    Of data that is only judged a file with ``images`` and ``labels`` (or ``image`` and ``label``) will do: it is the
    test split, and its labels need not have all of the classes.

    Raises
    ------
    InputError
        If there is no such file, or it holds something else.
    """
    path = source.required_root("the path of an .npz file")
    sets = _read_sets(path, "data.root", lambda keys: _pairs(keys, judged=source.judged))
    if "train" not in sets:
        return _judged(sets, source, path)
    classes = np.unique(sets["train"].labels)
    whole = np.array_equal(classes, np.arange(len(classes))) and len(classes) > 0
    if not whole or not all(np.isin(one.labels, classes).all() for one in sets.values()):
        raise InputError("data.root", str(path), "labels must be 0, 1, 2, ... without a gap, all of them in training")
    names = tuple(str(label) for label in classes)
    return Published(names, sets["train"], sets.get("test"), sets.get("validation"))


def holds_training(path: Path) -> bool:
    """Whether a file can be trained on; one that cannot be read holds nothing."""
    try:
        return "train_images" in names_in(path)
    except (OSError, ValueError):
        return False


def read_extra(path: Path) -> ImageSet:
    """Extra training images: ``images`` and ``labels`` (or ``image`` and ``label``) in the forms that `read` takes."""
    return _read_sets(path, "data.extra", lambda keys: {"extra": _alone(keys)})["extra"]


def extra_digest(path: Path) -> str:
    """SHA-256 of a file of extra images."""
    try:
        if path.exists() and not path.is_file():  # a pipe would keep its reader waiting
            raise OSError(errno.EINVAL, "it is no file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError("data.extra", str(path), f"cannot be read ({error.strerror})") from error


def _pairs(keys: Sequence[str], *, judged: bool) -> Pairs:
    """The splits of which a file holds images or labels; training images, or those that are judged, must be there."""
    found: dict[str, tuple[str, str]] = {}
    for split, prefixes in _PREFIXES.items():
        for prefix in prefixes:
            pair = (f"{prefix}_images", f"{prefix}_labels")
            if any(key in keys for key in pair):
                found.setdefault(split, pair)
    if judged and not found:
        return {"test": _alone(keys)}
    return found if judged else {"train": ("train_images", "train_labels"), **found}


def _alone(keys: Sequence[str]) -> tuple[str, str]:
    return next((pair for pair in _ALONE if pair[0] in keys), _ALONE[0])


def _judged(sets: Mapping[str, ImageSet], source: Source, path: Path) -> Published:
    """Nothing to train on: of how many classes the images are the labels say, or who judges."""
    labels = np.concatenate([one.labels for one in sets.values()])
    if len(labels) == 0 or labels.min() < 0:
        raise InputError("data.root", str(path), "must hold images, and labels from 0 on")
    classes = int(labels.max()) + 1 if source.classes is None else source.classes
    if labels.max() >= classes:
        raise InputError("data.classes", classes, f"{path} has labels up to {labels.max()}")
    none = next(iter(sets.values())).take(np.arange(0))
    return Published(tuple(map(str, range(classes))), none, sets.get("test"), sets.get("validation"))


def _read_sets(path: Path, field: str, pairs_in: Callable[[Sequence[str]], Pairs]) -> dict[str, ImageSet]:
    pairs: dict[str, tuple[str, str]] = {}

    def wanted(names: list[str]) -> list[str]:
        pairs.update(pairs_in(names))
        keys = [key for pair in pairs.values() for key in pair]
        if absent := [key for key in keys if key not in names]:
            raise InputError(field, str(path), f"must hold {absent[0]}; it holds {', '.join(names) or 'nothing'}")
        return keys

    try:
        found = load_npz(path, wanted)
        return {
            split: ImageSet(_channels_first(found[images], field, images), _numbers(found[labels], field, labels))
            for split, (images, labels) in pairs.items()
        }
    except InputError as problem:
        raise problem if problem.field == field else InputError(field, str(path), str(problem)) from None
    except (OSError, ValueError) as problem:
        raise InputError(field, str(path), f"must be a readable .npz file ({problem})") from problem


def _channels_first(images: npt.NDArray[Any], field: str, key: str) -> npt.NDArray[np.uint8]:
    """(N, C, H, W); refused where the shape does not say which axis is which."""
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[:, None]
    if images.dtype == np.uint8 and images.ndim == 4:
        first, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
        if first != last:
            return images if first else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise InputError(
        field,
        f"{key}: {images.dtype} {images.shape}",
        "must be uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W), where C alone is 1 or 3",
    )


def _numbers(labels: npt.NDArray[Any], field: str, key: str) -> npt.NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2) or labels.shape[1:] not in ((), (1,)):
        raise InputError(
            field, f"{key}: {labels.dtype} {labels.shape}", "must be whole numbers of shape (N,) or (N, 1)"
        )
    return labels.reshape(-1).astype(np.int64)
