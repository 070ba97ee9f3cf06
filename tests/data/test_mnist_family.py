from __future__ import annotations

import gzip
import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import MNIST

from distsens.data import Dataset, Source, load
from distsens.errors import InputError

_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _load(root: Path | None, download: bool = False, fraction: float = 0.1, name: str = "mnist") -> Dataset:
    return load(name, Source(root, download), validation_fraction=fraction, seed=0)


def _idx(array: np.ndarray) -> bytes:
    """The published file format: type and dimensions, sizes (big-endian), then the bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def files() -> dict[str, bytes]:
    """A small MNIST: the files' names and contents."""
    random = np.random.default_rng(0)
    contents = {}
    for part, count in (("train", 60), ("t10k", 20)):
        contents[f"{part}-images-idx3-ubyte"] = _idx(random.integers(256, size=(count, 28, 28)))
        contents[f"{part}-labels-idx1-ubyte"] = _idx(np.arange(count) % 10)
    return contents


def _write(root: Path, files: dict[str, bytes], packed: tuple[str, ...] = (), folder: str = "MNIST") -> Path:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        if name in packed:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (raw / name).write_bytes(content)
    return raw


@pytest.mark.parametrize("packed", [(), _NAMES, _NAMES[:1]], ids=["unpacked", "packed", "mixed"])
@pytest.mark.parametrize("download", [False, True])
def test_files_are_read_packed_or_not_and_left_as_they_are(
    tmp_path: Path, files: dict[str, bytes], packed: tuple[str, ...], download: bool
) -> None:
    raw = _write(tmp_path, files, packed)
    before = sorted(raw.iterdir())
    dataset = _load(tmp_path, download, fraction=0.5)
    assert sorted(raw.iterdir()) == before
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (30, 30, 20)
    assert dataset.shape == (1, 28, 28)
    assert dataset.test.images.tobytes() == files["t10k-images-idx3-ubyte"][16:]
    assert dataset.test.labels.tolist() == list(files["t10k-labels-idx1-ubyte"][8:])
    kept = {image.tobytes() for split in (dataset.train, dataset.validation) for image in split.images}
    pixels = files["train-images-idx3-ubyte"][16:]
    assert kept == {pixels[start : start + 784] for start in range(0, len(pixels), 784)}


def test_missing_files_are_named_with_what_to_do(tmp_path: Path, files: dict[str, bytes]) -> None:
    _write(tmp_path, {name: content for name, content in files.items() if "t10k-labels" not in name})
    with pytest.raises(InputError, match=r"MNIST/raw/t10k-labels-idx1-ubyte .* --data\.download") as error:
        _load(tmp_path)
    assert error.value.field == "data.root"
    assert error.value.value == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "classes"),
    [
        ("mnist", "MNIST", ("0", "1", "9")),
        ("fashion_mnist", "FashionMNIST", ("T-shirt/top", "Trouser", "Ankle boot")),
        ("kmnist", "KMNIST", ("o", "ki", "wo")),
    ],
)
def test_each_of_the_family_has_its_folder_and_its_classes(
    tmp_path: Path, files: dict[str, bytes], name: str, folder: str, classes: tuple[str, ...]
) -> None:
    with pytest.raises(InputError, match=f"must hold {folder}/raw"):
        _load(tmp_path, name=name)
    _write(tmp_path, files, folder=folder)
    dataset = _load(tmp_path, fraction=0.5, name=name)
    assert (dataset.classes[0], dataset.classes[1], dataset.classes[9]) == classes
    assert dataset.test.images.tobytes() == files["t10k-images-idx3-ubyte"][16:]


def test_a_root_is_needed() -> None:
    with pytest.raises(InputError, match=r"data\.root: got None"):
        _load(None, download=True)


@pytest.mark.parametrize("packed", [(), _NAMES], ids=["unpacked", "packed"])
@pytest.mark.parametrize("name", _NAMES)
def test_a_file_that_is_cut_short_is_refused(
    tmp_path: Path, files: dict[str, bytes], name: str, packed: tuple[str, ...]
) -> None:
    path = next(_write(tmp_path, files, packed).glob(f"{name}*"))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="undamaged"):
        _load(tmp_path)


def test_a_file_of_something_else_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    for content in (b"", b"<html>not found</html>", b"\0\0\x0a\1" + bytes(9)):
        root = tmp_path / str(len(content))
        _write(root, files | {"train-images-idx3-ubyte": content})
        with pytest.raises(InputError, match="undamaged"):
            _load(root)


@pytest.fixture
def mirror(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An HTTP server on this machine from which torchvision fetches the small MNIST."""
    folder = tmp_path / "mirror"
    raw = _write(folder, files, packed=_NAMES)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(raw)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    md5 = {name: hashlib.md5((raw / name).read_bytes()).hexdigest() for name in (f"{name}.gz" for name in _NAMES)}
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(MNIST, "resources", list(md5.items()))
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("mirror")
def test_missing_files_are_fetched_when_allowed(tmp_path: Path, files: dict[str, bytes]) -> None:
    root = tmp_path / "new"
    fetched = _load(root, download=True, fraction=0.5)
    assert fetched.test.images.tobytes() == files["t10k-images-idx3-ubyte"][16:]
    assert _load(root, fraction=0.5).digest() == fetched.digest()


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(InputError, match=r"data\.download: got True; MNIST cannot be fetched into"):
        _load(tmp_path, download=True)


@pytest.mark.skipif("DISTSENS_DATA" not in os.environ, reason="DISTSENS_DATA names no folder that holds MNIST/raw")
def test_the_real_mnist_has_its_published_images() -> None:
    dataset = _load(Path(os.environ["DISTSENS_DATA"]))
    held_out, kept, test = (
        np.bincount(split.labels).tolist() for split in (dataset.validation, dataset.train, dataset.test)
    )
    published = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert [one + other for one, other in zip(held_out, kept, strict=True)] == published
    assert held_out == pytest.approx([count / 10 for count in published], abs=1)
    assert test == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    pixels = np.concatenate([dataset.train.images, dataset.validation.images]) / 255
    assert (pixels.mean(), pixels.std()) == pytest.approx((0.1307, 0.3081), abs=5e-5)
