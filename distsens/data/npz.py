"""Images in NumPy's .npz files: a whole data set, or extra images to train on. Nothing in them is unpickled."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distsens.data.images import ImageSet, Published
from distsens.data.source import Source
from distsens.errors import InputError

_CHANNELS = (1, 3)
_EXTRA = [("images", "labels")]


def read(source: Source) -> Published:
    """A file with ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``, as MedMNIST has them.

    Images are uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with one or three channels; labels are whole
    numbers from 0 on, of shape (N,) or (N, 1). Classes are called after their numbers. Anything else in the file, such
    as ``val_images``, is left alone: validation is held out of the training images.

    Of data that is only judged a file with ``images`` and ``labels`` (or ``image`` and ``label``) will do: it is the
    test split, and its labels need not have all of the classes.

    Raises
    ------
    InputError
        If there is no such file, or it holds something else.
    """
    path = source.required_root("the path of an .npz file")
    keys = [("train_images", "train_labels"), ("test_images", "test_labels")]
    sets = _read_sets(path, "data.root", keys, singular=source.judged, or_keys=_EXTRA if source.judged else None)
    if len(sets) == 1:
        return _judged(sets[0], source, path)
    train, test = sets
    classes = np.unique(train.labels)
    if not np.array_equal(classes, np.arange(len(classes))) or not np.isin(test.labels, classes).all():
        raise InputError("data.root", str(path), "labels must be 0, 1, 2, ... without a gap, all of them in training")
    return Published(tuple(str(label) for label in classes), train, test)


def read_extra(path: Path) -> ImageSet:
    """Extra training images: ``images`` and ``labels`` (or ``image`` and ``label``) in the forms that `read` takes."""
    return _read_sets(path, "data.extra", _EXTRA, singular=True)[0]


def extra_digest(path: Path) -> str:
    """SHA-256 of a file of extra images."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError("data.extra", str(path), f"cannot be read ({error.strerror})") from error


def _judged(test: ImageSet, source: Source, path: Path) -> Published:
    labels = test.labels
    if len(labels) == 0 or labels.min() < 0:
        raise InputError("data.root", str(path), "must hold images, and labels from 0 on")
    classes = int(labels.max()) + 1 if source.classes is None else source.classes
    if labels.max() >= classes:
        raise InputError("data.classes", classes, f"{path} has labels up to {labels.max()}")
    return Published(tuple(map(str, range(classes))), test.take(np.arange(0)), test)


def _read_sets(
    path: Path,
    field: str,
    keys: Sequence[tuple[str, str]],
    *,
    singular: bool = False,
    or_keys: Sequence[tuple[str, str]] | None = None,
) -> list[ImageSet]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with file:
            if or_keys is not None and keys[0][0] not in file:
                keys = or_keys
            if singular and keys == _EXTRA and "image" in file:
                keys = [(images[:-1], labels[:-1]) for images, labels in keys]
            absent = [key for pair in keys for key in pair if key not in file]
            if absent:
                raise InputError(field, str(path), f"must hold {absent[0]}; it holds {', '.join(file) or 'nothing'}")
            return [
                ImageSet(_channels_first(file[images], field, images), _numbers(file[labels], field, labels))
                for images, labels in keys
            ]
    except InputError as problem:
        raise problem if problem.field == field else InputError(field, str(path), str(problem)) from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as problem:
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
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(labels),), (len(labels), 1)):
        raise InputError(
            field, f"{key}: {labels.dtype} {labels.shape}", "must be whole numbers of shape (N,) or (N, 1)"
        )
    return labels.reshape(-1).astype(np.int64)
