from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

from distsens.data import Dataset, Source, load
from distsens.errors import InputError

Write = Callable[[Path], dict[str, np.ndarray]]
"""Writes a small data set in the published format; the images (N, 3, 32, 32) and labels of both splits."""


def _load(name: str, root: Path | None, download: bool = False) -> Dataset:
    return load(name, Source(root, download), validation_fraction=0.5, seed=0)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def _split(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.random.default_rng(seed).integers(256, size=(count, 3, 32, 32)).astype(np.uint8)
    return pixels, np.arange(count) % classes


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, int, str], Write]:
    """A writer of small CIFAR files, which torchvision then takes for the published ones by their MD5 sums."""

    def writer(kind: Any, classes: int, key: str) -> Write:
        def write(root: Path) -> dict[str, np.ndarray]:
            folder = root / kind.base_folder
            folder.mkdir()
            found: dict[str, list[np.ndarray]] = {"train": [], "train labels": [], "test": [], "test labels": []}
            for split, files in (("train", kind.train_list), ("test", kind.test_list)):
                for seed, (name, _) in enumerate(files):
                    images, labels = _split(2 * classes, classes, seed)
                    batch = {"data": images.reshape(len(images), -1), key: labels.tolist()}
                    (folder / name).write_bytes(pickle.dumps(batch))
                    found[split].append(images)
                    found[f"{split} labels"].append(labels)
            meta = folder / kind.meta["filename"]
            meta.write_bytes(pickle.dumps({kind.meta["key"]: [f"class {label}" for label in range(classes)]}))
            for files in ("train_list", "test_list"):
                monkeypatch.setattr(kind, files, [[name, _md5(folder / name)] for name, _ in getattr(kind, files)])
            monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": _md5(meta)})
            return {name: np.concatenate(parts) for name, parts in found.items()}

        return write

    return writer


@pytest.fixture(params=["cifar10", "cifar100", "svhn"])
def published(
    request: pytest.FixtureRequest,
    cifar: Callable[[Any, int, str], Write],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, Write]:
    """A data set's name and its writer."""

    def write_svhn(root: Path) -> dict[str, np.ndarray]:
        found = {}
        split_list = dict(SVHN.split_list)
        for split, seed in (("train", 0), ("test", 1)):
            images, labels = _split(20, 10, seed)
            path = root / f"{split}_32x32.mat"
            in_file = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
            scipy.io.savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": in_file})
            split_list[split] = [split_list[split][0], path.name, _md5(path)]
            found |= {split: images, f"{split} labels": labels}
        monkeypatch.setattr(SVHN, "split_list", split_list)
        return found

    writers = {
        "cifar10": cifar(CIFAR10, 10, "labels"),
        "cifar100": cifar(CIFAR100, 100, "fine_labels"),
        "svhn": write_svhn,
    }
    return request.param, writers[request.param]


def test_images_and_labels_are_those_of_the_files(tmp_path: Path, published: tuple[str, Write]) -> None:
    name, write = published
    written = write(tmp_path)
    dataset = _load(name, tmp_path)
    assert dataset.shape == (3, 32, 32)
    assert len(dataset.classes) == written["train labels"].max() + 1
    assert dataset.classes[1] == ("1" if name == "svhn" else "class 1")
    assert np.array_equal(dataset.test.images, written["test"])
    assert np.array_equal(dataset.test.labels, written["test labels"])
    read = {
        (image.tobytes(), label)
        for split in (dataset.train, dataset.validation)
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    }
    train = zip(written["train"], written["train labels"].tolist(), strict=True)
    assert read == {(image.tobytes(), label) for image, label in train}
    assert len(dataset.train) == len(dataset.validation) == len(written["train"]) // 2


def test_missing_files_are_named_with_the_folder_and_what_to_do(tmp_path: Path, published: tuple[str, Write]) -> None:
    name, _ = published
    with pytest.raises(InputError, match=r"must hold .*; --data\.download fetches it") as error:
        _load(name, tmp_path)
    assert (error.value.field, error.value.value) == ("data.root", str(tmp_path))
    with pytest.raises(InputError, match=r"data\.root: got None; must be the folder that holds"):
        _load(name, None)


def test_a_file_that_is_not_the_published_one_is_refused_before_it_is_unpickled(
    tmp_path: Path, cifar: Callable[[Any, int, str], Write]
) -> None:
    cifar(CIFAR10, 10, "labels")(tmp_path)

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "unpickled",))

    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match=r"as published; --data\.download fetches them anew"):
        _load("cifar10", tmp_path)
    assert not (tmp_path / "unpickled").exists()


def test_a_damaged_svhn_file_is_refused(tmp_path: Path) -> None:
    for name in ("train_32x32.mat", "test_32x32.mat"):
        (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=r"must hold train_32x32\.mat, test_32x32\.mat as published"):
        _load("svhn", tmp_path)


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(InputError, match=r"data\.download: got True; CIFAR10 cannot be fetched into"):
        _load("cifar10", tmp_path, download=True)
