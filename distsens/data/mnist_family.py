"""MNIST and its successors: 70,000 grey images of 28x28 pixels in ten classes, in torchvision's folder layout.

MNIST (LeCun, Cortes and Burges), Fashion-MNIST (Xiao, Rasul and Vollgraf 2017) and Kuzushiji-MNIST (Clanuwat et al.
2018) are published in files of the same names and format.
"""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from distsens.data.images import ImageSet, Published
from distsens.data.source import Source
from distsens.errors import InputError
from distsens.scratch import scratch_folder

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
# What gzip and torchvision raise on files that are cut short or hold something else.
_DAMAGE = (AssertionError, KeyError, ValueError, RuntimeError, OSError, EOFError, zlib.error)


def read(name: str, source: Source) -> Published:
    """60,000 training and 10,000 test images from the files ``<root>/<name>/raw/*-ubyte``, packed or not.

    Packed files (.gz) stay packed. Download from one process alone: two would write the same files. torchvision
    compares what it downloads with the published MD5 sums; files that are already there are only checked for their
    format.

    Parameters
    ----------
    name : torchvision's class, which is the folder's name as well: MNIST, FashionMNIST or KMNIST.
    source : root and download matter.

    Raises
    ------
    InputError
        If files are missing and may not or cannot be downloaded, or if a file is damaged.
    """
    from torchvision import datasets  # here, because it takes seconds that other data sets need not wait for

    kind = getattr(datasets, name)
    root = source.required_root(f"the folder that holds {name}/raw, or is to hold it")
    raw = root / name / "raw"
    missing = [file for file in _FILES if not (raw / file).exists() and not (raw / f"{file}.gz").exists()]
    if missing and not source.download:
        raise InputError(
            "data.root", str(root), f"must hold {name}/raw/{missing[0]} (or .gz); --data.download fetches it"
        )
    if missing:
        try:
            kind(str(root), download=True)
        except (OSError, RuntimeError) as problem:
            raise InputError("data.download", True, f"{name} cannot be fetched into {root} ({problem})") from problem
    try:
        with _unpacked(root, name) as folder:
            train, test = (kind(str(folder), train=train) for train in (True, False))
            classes = tuple(label.partition(" - ")[0] for label in kind.classes)  # torchvision says "7 - seven"
            return Published(classes, _image_set(train.data, train.targets), _image_set(test.data, test.targets))
    except _DAMAGE as problem:
        raise InputError("data.root", str(root), f"must hold undamaged files in {name}/raw ({problem})") from problem


def _image_set(images: Tensor, labels: Tensor) -> ImageSet:
    return ImageSet(images.numpy()[:, None], labels.numpy().astype(np.int64))


@contextmanager
def _unpacked(root: Path, name: str) -> Iterator[Path]:
    """A root whose files are all unpacked, as torchvision needs them: this one, or a temporary copy of it.

    Nothing is unpacked in place, because the user's folder may be read-only.
    """
    raw = root / name / "raw"
    if all((raw / file).exists() for file in _FILES):
        yield root
        return
    with scratch_folder() as folder:
        target = folder / name / "raw"
        target.mkdir(parents=True)
        for file in _FILES:
            if (raw / file).exists():
                shutil.copyfile(raw / file, target / file)
            else:
                with gzip.open(raw / f"{file}.gz") as packed, (target / file).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
        yield folder
