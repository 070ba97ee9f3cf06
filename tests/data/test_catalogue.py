from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distsens.data import DATASETS, Dataset, ImageSet, Published, Source, load
from distsens.errors import InputError


def _digits(**changes: object) -> Dataset:
    arguments = {"validation_fraction": 0.1, "seed": 0} | changes
    return load("digits", Source(None), **arguments)  # type: ignore[arg-type]


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match=r"data\.name: got 'minst'; must be one of digits, mnist"):
        load("minst", Source(None), validation_fraction=0.1, seed=0)


def test_loading_twice_gives_the_same_data_and_another_seed_another_split() -> None:
    assert _digits().digest() == _digits().digest() != _digits(seed=1).digest()


def test_a_limit_keeps_some_training_images_of_every_class_and_all_others() -> None:
    whole, limited = _digits(), _digits(limit=100)
    assert np.bincount(limited.train.labels) == pytest.approx(np.bincount(whole.train.labels) * 100 / 1293, abs=1)
    assert len(limited.train) == 100
    assert {image.tobytes() for image in limited.train.images} <= {image.tobytes() for image in whole.train.images}
    assert limited.validation.digest() == whole.validation.digest()
    assert limited.test.digest() == whole.test.digest()
    assert _digits(limit=1293).digest() == whole.digest()


@pytest.mark.parametrize("limit", [0, -1, 1294])
def test_a_limit_outside_the_training_images_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=r"data\.limit: .* must be 1 to 1293"):
        _digits(limit=limit)


def test_a_new_data_set_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ImageSet(np.zeros((40, 3, 4, 4), np.uint8), np.arange(40, dtype=np.int64) % 2)
    monkeypatch.setitem(DATASETS, "pair", lambda _source: Published(("cat", "dog"), pair, pair))
    dataset = load("pair", Source(None), validation_fraction=0.25, seed=0)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (30, 10, 40)
    assert (dataset.name, dataset.classes, dataset.shape) == ("pair", ("cat", "dog"), (3, 4, 4))


def test_a_size_is_refused_where_the_images_have_their_own() -> None:
    with pytest.raises(
        InputError, match=r"data\.image_size: got 32; is for data\.name folder; digits has its own size"
    ):
        load("digits", Source(None, image_size=32), validation_fraction=0.1, seed=0)


def _extra(path: Path, shape: tuple[int, ...] = (30, 8, 8), classes: int = 10, plural: str = "s") -> Path:
    images = np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)
    np.savez(path, **{f"image{plural}": images, f"label{plural}": np.arange(len(images)) % classes})
    return path


def test_extra_images_follow_the_training_images_and_enter_no_other_split(tmp_path: Path) -> None:
    without, path = _digits(limit=100), _extra(tmp_path / "extra.npz")
    dataset = _digits(limit=100, extra=path)
    added = np.load(path)
    assert (len(dataset.train), dataset.extra, without.extra) == (130, 30, 0)
    assert dataset.train.take(np.arange(100)).digest() == without.train.digest()
    assert np.array_equal(dataset.train.images[100:, 0], added["images"])
    assert np.array_equal(dataset.train.labels[100:], added["labels"])
    assert dataset.validation.digest() == without.validation.digest()
    assert dataset.test.digest() == without.test.digest()


def test_extra_images_may_be_called_in_the_singular(tmp_path: Path) -> None:
    path = _extra(tmp_path / "extra.npz", plural="")
    assert _digits(extra=path).extra == 30


@pytest.mark.parametrize(
    ("shape", "classes", "says"),
    [
        ((30, 9, 8), 10, r"images of shape \(1, 8, 8\), not \(1, 9, 8\)"),
        ((30, 8, 8, 3), 10, r"images of shape \(1, 8, 8\), not \(3, 8, 8\)"),
        ((30, 8, 8), 11, "labels 0 to 9"),
        ((0, 8, 8), 10, "labels 0 to 9"),
    ],
)
def test_extra_images_of_another_kind_are_refused(
    tmp_path: Path, shape: tuple[int, ...], classes: int, says: str
) -> None:
    with pytest.raises(InputError, match=says) as error:
        _digits(extra=_extra(tmp_path / "extra.npz", shape, classes))
    assert error.value.field == "data.extra"
