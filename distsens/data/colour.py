"""Published colour images of 32x32 pixels: CIFAR-10, CIFAR-100 (Krizhevsky 2009) and SVHN (Netzer et al. 2011).

torchvision reads them, in its own folder layout. It compares every file with its published MD5 sum first and unpickles
CIFAR's files only if it agrees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from distsens.data.images import ImageSet, Published
from distsens.data.source import Source
from distsens.errors import InputError


def cifar(name: str, source: Source) -> Published:
    """CIFAR10 or CIFAR100 (fine labels): 50,000 training and 10,000 test images, ``<root>/cifar-10-batches-py/*``.

    Raises
    ------
    InputError
        If files are missing or damaged, and may not or cannot be downloaded.
    """
    from torchvision import datasets  # here, because it takes seconds that other data sets need not wait for

    kind = getattr(datasets, name)
    names = [file for file, _ in (*kind.train_list, *kind.test_list)] + [kind.meta["filename"]]
    files = [f"{kind.base_folder}/{file}" for file in names]
    train, test = _open(kind, source, files, [{"train": True}, {"train": False}])
    sets = [_image_set(part.data.transpose(0, 3, 1, 2), part.targets) for part in (train, test)]
    return Published(tuple(train.classes), sets[0], sets[1])


def svhn(source: Source) -> Published:
    """SVHN, cropped digits: 73,257 training and 26,032 test images, ``<root>/{train,test}_32x32.mat``.

    Class 0 is the digit 0 (label 10 in the files). The published `extra` split is not used.

    Raises
    ------
    InputError
        As for `cifar`.
    """
    from torchvision.datasets import SVHN

    splits = ("train", "test")
    files = [SVHN.split_list[split][1] for split in splits]
    train, test = _open(SVHN, source, files, [{"split": split} for split in splits])
    return Published(tuple("0123456789"), _image_set(train.data, train.labels), _image_set(test.data, test.labels))


def _image_set(images: npt.NDArray[np.uint8], labels: Any) -> ImageSet:
    return ImageSet(np.ascontiguousarray(images), np.array(labels, np.int64))


def _open(kind: Any, source: Source, files: Sequence[str], splits: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The data set of each split, its files fetched if they may be."""
    root = source.required_root(f"the folder that holds {files[0]}, or is to hold it")
    missing = [file for file in files if not (root / file).is_file()]
    if missing and not source.download:
        raise InputError("data.root", str(root), f"must hold {missing[0]}; --data.download fetches it")
    try:
        return [kind(str(root), download=source.download, **split) for split in splits]
    except (OSError, RuntimeError) as problem:
        if source.download:
            raise InputError(
                "data.download", True, f"{kind.__name__} cannot be fetched into {root} ({problem})"
            ) from problem
        raise InputError(
            "data.root", str(root), f"must hold {', '.join(files)} as published; --data.download fetches them anew"
        ) from problem
