from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsens.data import Dataset, Source, load
from distsens.data.npz import read_extra
from distsens.errors import InputError

LABELS = np.arange(20) % 4


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(256, size=shape).astype(np.uint8)


def _write(path: Path, **changes: Any) -> Path:
    arrays = {
        "train_images": _pixels(20, 6, 5),
        "train_labels": LABELS,
        "test_images": _pixels(8, 6, 5),
        "test_labels": LABELS[:8],
    }
    arrays = {key: array for key, array in (arrays | changes).items() if array is not None}
    np.savez(path, **arrays)
    return path


def _load(path: Path | None) -> Dataset:
    return load("npz", Source(path), validation_fraction=0.5, seed=0)


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_images_are_read_with_channels_first_last_or_absent(tmp_path: Path, channels: int | None, last: bool) -> None:
    first = _pixels(8, channels or 1, 6, 5)
    stored = first[:, 0] if channels is None else first.transpose(0, 2, 3, 1) if last else first
    train = np.repeat(stored, 3, axis=0)
    path = _write(tmp_path / "set.npz", train_images=train, test_images=stored, train_labels=np.repeat(LABELS[:8], 3))
    dataset = _load(path)
    assert np.array_equal(dataset.test.images, first)
    assert dataset.test.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert (dataset.shape, dataset.classes) == ((channels or 1, 6, 5), ("0", "1", "2", "3"))
    assert (len(dataset.train), len(dataset.validation)) == (12, 12)


def test_a_medmnist_file_is_read(tmp_path: Path) -> None:
    """Labels of shape (N, 1) and uint8, and a validation split, which is used unless another is wanted."""
    labels = LABELS.astype(np.uint8)[:, None]
    validation = {"val_images": _pixels(4, 6, 5), "val_labels": labels[:4]}
    path = _write(tmp_path / "med.npz", train_labels=labels, test_labels=labels[:8], **validation)
    dataset = load("npz", Source(path), seed=0)
    assert dataset.test.labels.tolist() == LABELS[:8].tolist()
    assert (len(dataset.train), len(dataset.validation), dataset.notices) == (20, 4, ())
    assert np.array_equal(np.asarray(dataset.validation.images)[:, 0], validation["val_images"])
    held_out = _load(path)
    assert (len(held_out.train), len(held_out.validation), len(held_out.test)) == (10, 10, 8)
    assert "the given validation split is left out" in held_out.notices[0]


def test_a_file_without_a_test_split_gives_a_part_of_its_training_images(tmp_path: Path) -> None:
    path = _write(tmp_path / "two.npz", test_images=None, test_labels=None)
    source = Source(path, test_fraction=0.4)
    dataset = load("npz", source, validation_fraction=0.4, seed=3)
    assert np.bincount(dataset.test.labels).tolist() == [2] * 4
    assert len(dataset.train) + len(dataset.validation) == 12
    assert load("npz", source, validation_fraction=0.4, seed=4).test.digest() == dataset.test.digest()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test_labels": None}, "must hold test_labels; it holds train_images, train_labels, test_images"),
        ({"train_images": _pixels(20, 3, 5, 3)}, r"train_images: uint8 \(20, 3, 5, 3\)"),
        ({"train_images": _pixels(20, 5, 6, 4)}, "where C alone is 1 or 3"),
        ({"train_images": _pixels(20, 5)}, r"must be uint8 of shape \(N, H, W\)"),
        ({"train_images": _pixels(20, 6, 5) / 255}, r"train_images: float64"),
        ({"train_images": _pixels(19, 6, 5)}, "labels"),
        ({"test_images": _pixels(8, 6, 6)}, "every split must have images of shape"),
        ({"train_labels": LABELS.astype(float)}, "must be whole numbers"),
        ({"train_labels": np.eye(20, 4, dtype=int)}, r"train_labels: int64 \(20, 4\)"),
        ({"train_labels": np.array(3)}, r"train_labels: int64 \(\)'; must be whole numbers of shape"),
        ({"train_labels": np.array(3.5)}, r"train_labels: float64 \(\)"),
        ({"train_images": np.array(3, np.uint8)}, r"train_images: uint8 \(\)'; must be uint8 of shape"),
        ({"train_labels": np.zeros((20, 1, 1), int)}, r"train_labels: int64 \(20, 1, 1\)"),
        ({"train_labels": LABELS > 1}, r"train_labels: bool \(20,\)"),
        ({"train_labels": LABELS[:0]}, r"must be int64 of shape \(20,\)"),
        ({"train_images": _pixels(0, 6, 5), "train_labels": LABELS[:0]}, "labels must be 0, 1, 2"),
        ({"train_labels": LABELS.astype(np.uint64) + np.uint64(2**63)}, "labels must be 0, 1, 2"),
        ({"val_images": _pixels(4, 6, 5)}, "must hold val_labels"),
        ({"val_images": _pixels(4, 6, 5), "val_labels": LABELS[:4] + 1}, "all of them in training"),
        ({"test_images": _pixels(0, 6, 5), "test_labels": LABELS[:0]}, "its test split must hold images, or not be"),
        ({"train_labels": LABELS * 0, "test_labels": LABELS[:8] * 0}, "two classes or more; all are of class 0"),
        ({"train_labels": LABELS + 1}, "labels must be 0, 1, 2"),
        ({"train_labels": LABELS * 2}, "labels must be 0, 1, 2"),
        ({"test_labels": LABELS[:8] - 1}, "labels must be 0, 1, 2"),
        ({"test_labels": LABELS[:8] + 1}, "all of them in training"),
        ({"train_labels": np.array([*"ab"] * 10, dtype=object)}, "must be a readable .npz file"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        _load(_write(tmp_path / "set.npz", **changes))


def test_a_validation_split_without_images_is_refused_where_it_would_be_used(tmp_path: Path) -> None:
    path = _write(tmp_path / "set.npz", val_images=_pixels(0, 6, 5), val_labels=LABELS[:0])
    with pytest.raises(InputError, match="its validation split must hold images, or not be there at all"):
        load("npz", Source(path), seed=0)
    assert len(_load(path).validation) == 10


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "unpickled",))

    _write(tmp_path / "objects.npz", train_images=np.array([Trap()], dtype=object))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "unpickled").unlink(missing_ok=True)
    for name in ("objects.npz", "pickle.npz"):
        with pytest.raises(InputError, match=r"must be a readable \.npz file"):
            _load(tmp_path / name)
    assert not (tmp_path / "unpickled").exists()


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    whole = _write(tmp_path / "set.npz").read_bytes()
    np.save(tmp_path / "single.npy", LABELS)
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    damaged = bytearray(whole)
    damaged[400] ^= 255
    (tmp_path / "damaged.npz").write_bytes(damaged)
    for name in ("absent.npz", "single.npy", "cut.npz", "empty.npz", "damaged.npz", "."):
        with pytest.raises(InputError, match=r"data\.root: got .*; must be a readable \.npz file"):
            _load(tmp_path / name)
    with pytest.raises(InputError, match=r"data\.root: got None; must be the path of an \.npz file"):
        _load(None)


def test_errors_of_extra_images_name_their_own_field(tmp_path: Path) -> None:
    np.savez(tmp_path / "extra.npz", images=_pixels(4, 6, 5), labels=LABELS[:3])
    for name in ("extra.npz", "absent.npz"):
        with pytest.raises(InputError) as error:
            read_extra(tmp_path / name)
        assert error.value.field == "data.extra"


@pytest.mark.parametrize("keys", [("images", "labels"), ("image", "label")])
def test_images_and_labels_alone_are_a_test_split_of_data_that_is_only_judged(
    tmp_path: Path, keys: tuple[str, str]
) -> None:
    path, images = tmp_path / "judged.npz", _pixels(6, 5, 5)
    np.savez(path, **{keys[0]: images, keys[1]: np.array([0, 3, 1, 1, 3, 0])})
    dataset = load("npz", Source(path, judged=True), holds_out=False, seed=0)
    assert np.array_equal(dataset.test.images[:, 0], images)
    assert (dataset.classes, len(dataset.train), len(dataset.validation)) == (("0", "1", "2", "3"), 0, 0)
    ten = load("npz", Source(path, judged=True, classes=10), holds_out=False, seed=0)
    assert len(ten.classes) == 10
    with pytest.raises(InputError, match=r"data.classes: got 3; .* has labels up to 3"):
        load("npz", Source(path, judged=True, classes=3), holds_out=False, seed=0)
    with pytest.raises(InputError, match="must hold train_images"):
        _load(path)


def test_a_pool_is_held_out_of_images_that_are_only_judged_where_it_is_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "judged.npz", images=_pixels(6, 5, 5), labels=np.array([0, 3, 1, 1, 3, 0]))
    dataset = load("npz", Source(tmp_path / "judged.npz", judged=True), validation_fraction=0.1, seed=0)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (0, 1, 5)
    parts = [image.tobytes() for split in (dataset.validation, dataset.test) for image in split.images]
    assert len(set(parts)) == 6
