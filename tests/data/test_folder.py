from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distsens.data import Dataset, ImageFiles, Source, load
from distsens.data import folder as folder_module
from distsens.data.files import AS_IT_IS, Fit
from distsens.errors import InputError, printable

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path / "distsens"


def _image(path: Path, seed: int = 0, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    """Write an image of this width and height; its pixels (3, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(*size[::-1], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels.transpose(2, 0, 1)


def _classes(folder: Path, count: int, first: int = 0, **options: Any) -> np.ndarray:
    """Class folders with so many images each; all their pixels, class by class."""
    return np.stack(
        [
            _image(folder / name / f"{number}.png", first + count * label + number, **options)
            for label, name in enumerate(CLASSES)
            for number in range(count)
        ]
    )


def _read(root: Path, **options: Any) -> Dataset:
    return load("folder", Source(root, **options), seed=0, holds_out=False)


@pytest.mark.parametrize(("training", "test"), [("train", "test"), ("Train", "Test"), ("training", "TESTING")])
def test_train_and_test_folders_are_the_splits(tmp_path: Path, training: str, test: str) -> None:
    train = _classes(tmp_path / training, 4)
    other = _classes(tmp_path / test, 2, first=100)
    published = _read(tmp_path)
    assert published.classes == CLASSES
    assert np.array_equal(published.train.images, train)
    assert published.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert np.array_equal(published.test.images, other)
    assert published.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert published.left_out == ()


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "DEV"])
def test_a_given_validation_folder_is_the_validation_split(tmp_path: Path, name: str) -> None:
    _classes(tmp_path / "train", 5)
    validation = _classes(tmp_path / name, 2, first=100)
    test = _classes(tmp_path / "test", 1, first=200)
    dataset = load("folder", Source(tmp_path), seed=0)
    assert [len(getattr(dataset, split)) for split in ("train", "validation", "test")] == [15, 6, 3]
    assert np.array_equal(dataset.validation.images, validation)
    assert np.array_equal(dataset.test.images, test)
    assert dataset.own_validation
    assert dataset.notices == ()


def test_with_a_fraction_validation_is_held_out_and_a_given_one_tests_unless_there_is_a_test_split(
    tmp_path: Path,
) -> None:
    _classes(tmp_path / "train", 5)
    given = _classes(tmp_path / "val", 2, first=100)
    dataset = load("folder", Source(tmp_path), validation_fraction=0.2, seed=0)
    assert (len(dataset.train), len(dataset.validation)) == (12, 3)
    assert np.array_equal(dataset.test.images, given)
    assert "the given validation split is the test split" in dataset.notices[0]
    _classes(tmp_path / "test", 1, first=200)
    dataset = load("folder", Source(tmp_path), validation_fraction=0.2, seed=0)
    assert (len(dataset.validation), len(dataset.test)) == (3, 3)
    assert "the given validation split is left out" in dataset.notices[0]


def test_beside_a_given_validation_split_the_test_split_is_held_out_of_the_training_images_and_said(
    tmp_path: Path,
) -> None:
    _classes(tmp_path / "train", 5)
    given = _classes(tmp_path / "valid", 2, first=100)
    dataset = load("folder", Source(tmp_path), seed=0)
    assert (len(dataset.train), len(dataset.test)) == (12, 3)
    assert np.array_equal(dataset.validation.images, given)
    assert dataset.notices[0].startswith("there is a validation and no test split: 3 training images are held out")
    judged = load("folder", Source(tmp_path, judged=True), seed=0, holds_out=False)
    assert (len(judged.train), len(judged.test), judged.own_validation) == (15, 0, True)


def test_a_test_folder_without_class_folders_is_left_out_and_said(tmp_path: Path) -> None:
    _classes(tmp_path / "train", 5)
    _image(tmp_path / "test" / "unlabelled.png")
    assert "test holds no class folders and is left out" in _read(tmp_path).notices


@pytest.mark.parametrize(
    "wrapped", ["data", "images", "my set/data", "archive", "a/b/c", "data/train", "train/images", "train/train"]
)
def test_folders_that_only_wrap_others_are_looked_through(tmp_path: Path, wrapped: str) -> None:
    everything = _classes(tmp_path / wrapped, 5)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "readme.txt").write_text("words")
    dataset = _read(tmp_path)
    assert dataset.classes == CLASSES
    assert len(dataset.train) + len(dataset.test) == len(everything)
    assert dataset.notices == ()


def test_a_folder_of_images_beside_folders_of_something_else_is_looked_into_and_the_others_are_named(
    tmp_path: Path,
) -> None:
    _classes(tmp_path / "images", 5)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.json").write_text("{}")
    dataset = _read(tmp_path)
    assert dataset.classes == CLASSES
    assert dataset.notices == ("annotations holds no images and is left out",)
    _classes(tmp_path / "masks", 1)
    with pytest.raises(InputError, match=r"images in the folders of images and in masks: name one of them"):
        _read(tmp_path)


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (("train", "test", "extra"), "holds extra beside test and train: call it train, val or test, or move it"),
        (("val", "valid", "train"), "holds val and valid, which mean the same"),
        (("Train", "train"), "holds Train and train, which mean the same"),
        (("seg_train", "seg_test", "seg_pred"), "seg_test and seg_train look like splits"),
        (("images-train", "images-val"), "images-train and images-val look like splits"),
    ],
)
def test_folders_that_may_be_splits_as_well_as_classes_are_refused(
    tmp_path: Path, folders: tuple[str, ...], says: str
) -> None:
    for folder in folders:
        _classes(tmp_path / folder, 1)
    with pytest.raises(InputError, match=says):
        _read(tmp_path)


def test_splits_without_classes_and_classes_that_are_split_are_refused(tmp_path: Path) -> None:
    for name in ("Train", "Test"):
        _image(tmp_path / "flat" / name / "0.png")
    with pytest.raises(InputError, match="Test and Train must hold a folder for each class"):
        _read(tmp_path / "flat")
    for name in ("ant/train", "ant/test", "bee/train", "bee/test"):
        _image(tmp_path / "inside" / name / "0.png")
    with pytest.raises(InputError, match="class ant holds test and train: splits must hold the classes"):
        _read(tmp_path / "inside")
    _image(tmp_path / "one" / "ant" / "0.png")
    with pytest.raises(InputError, match=r"must hold a folder for each of two classes or more; \. holds ant"):
        _read(tmp_path / "one")


def test_a_class_whose_name_is_not_utf_8_has_one_that_is(tmp_path: Path) -> None:
    for number, name in enumerate([b"caf\xe9", b"ant"]):
        _image(Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))) / "0.png", number)
    published = load("folder", Source(tmp_path, judged=True), seed=0, holds_out=False)
    assert published.classes == ("ant", r"caf\udce9")
    assert published.test.labels.tolist() == [0, 1]


def test_what_is_left_out_of_class_folders_is_said(tmp_path: Path) -> None:
    _classes(tmp_path, 5)
    _image(tmp_path / "loose.png")
    _image(tmp_path / "ant" / "young" / "0.png")
    (tmp_path / "bee" / "photo.heic").write_bytes(b"HEIC")
    (tmp_path / "bee" / "Thumbs.db").write_bytes(b"")
    assert _read(tmp_path).notices == (
        "1 images lie outside of class folders and are left out: loose.png",
        "folders inside class folders belong to their class: ant/young",
        "1 files are no images by their names and are left out: bee/photo.heic",
    )
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "list.csv").write_text("a,b")
    with pytest.raises(InputError, match=r"class folder zoo of \. holds no images, but zoo/list\.csv"):
        _read(tmp_path)


def test_training_images_that_are_not_wanted_are_not_read(tmp_path: Path) -> None:
    _classes(tmp_path / "train", 2)
    test = _classes(tmp_path / "test", 1, first=100)
    (tmp_path / "train" / "ant" / "0.png").write_bytes(b"no image")
    judged = load("folder", Source(tmp_path, judged=True, without_training=True), seed=0, holds_out=False)
    assert np.array_equal(judged.test.images, test)
    assert (len(judged.train), judged.left_out) == (0, ())
    assert judged.test.digest() == _read(tmp_path).test.digest()


def test_the_images_of_a_training_folder_alone_are_never_judged_unasked(tmp_path: Path) -> None:
    _classes(tmp_path / "train", 2)
    judged = load("folder", Source(tmp_path, judged=True), seed=0, holds_out=False)
    assert (len(judged.train), len(judged.validation), len(judged.test)) == (6, 0, 0)


@pytest.mark.parametrize("inside", ["", "train"])
def test_without_a_test_folder_a_part_is_held_out_and_always_the_same(tmp_path: Path, inside: str) -> None:
    everything = _classes(tmp_path / inside, 10)
    published = _read(tmp_path, test_fraction=0.3)
    assert np.bincount(published.test.labels).tolist() == [3, 3, 3]
    assert np.bincount(published.train.labels).tolist() == [7, 7, 7]
    both = np.concatenate([published.train.images, published.test.images])
    assert {image.tobytes() for image in both} == {image.tobytes() for image in everything}

    def test_of(seed: int) -> str:
        return load("folder", Source(tmp_path, test_fraction=0.3), validation_fraction=0.2, seed=seed).test.digest()

    assert test_of(0) == test_of(1) == published.test.digest()
    few = r"data\.test_fraction: got 0\.01; must leave each of 3 classes .* sides; class 'ant' has 10 images"
    with pytest.raises(InputError, match=few):
        _read(tmp_path, test_fraction=0.01)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("car", "train"):
        for number in range(5):
            _image(tmp_path / name / f"{number}.png", number)
    assert _read(tmp_path).classes == ("car", "train")


def test_what_is_no_image_or_hidden_is_passed_over(tmp_path: Path) -> None:
    _classes(tmp_path, 5)
    nested = _image(tmp_path / "bee" / "more" / "5.PNG", 50)
    for name in ("notes.txt", "Thumbs.db", ".hidden.png", "._0.png", "ant/.hidden.png", "ant/a.csv", "ant/.git/a.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"something else")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "ant" / "loop").symlink_to(tmp_path)
    published = _read(tmp_path)
    assert len(published.train) + len(published.test) == 16
    assert published.left_out == ()
    images = [*published.train.images, *published.test.images]
    labels = [*published.train.labels, *published.test.labels]
    assert [label for image, label in zip(images, labels, strict=True) if np.array_equal(image, nested)] == [1]


def test_links_to_images_and_to_class_folders_are_followed(tmp_path: Path) -> None:
    _classes(tmp_path / "elsewhere", 5)
    (tmp_path / "set").mkdir()
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "set" / "cat").mkdir()
    for number in range(5):
        (tmp_path / "set" / "cat" / f"{number}.png").symlink_to(tmp_path / "elsewhere" / "cat" / f"{number}.png")
    linked, direct = _read(tmp_path / "set"), _read(tmp_path / "elsewhere")
    assert (linked.train.digest(), linked.test.digest()) == (direct.train.digest(), direct.test.digest())


@pytest.mark.parametrize("memory", [4.0, 0.0])
def test_files_that_cannot_be_read_are_left_out_and_named(tmp_path: Path, memory: float) -> None:
    train = _classes(tmp_path / "train", 4)
    test = _classes(tmp_path / "test", 2)
    cut = tmp_path / "train" / "ant" / "1.png"
    cut.write_bytes(cut.read_bytes()[:90])
    (tmp_path / "test" / "bee" / "0.png").write_bytes(b"<html>not found</html>")
    (tmp_path / "train" / "cat" / "9.png").symlink_to(tmp_path / "nothing")
    published = _read(tmp_path, memory=memory)
    assert len(published.left_out) == 3
    assert published.left_out[0].startswith("train/ant/1.png (image file is truncated")
    assert published.left_out[1:] == (
        "train/cat/9.png (No such file or directory)",
        "test/bee/0.png (not an image)",
    )
    assert np.array_equal(np.asarray(published.train.images[:]), np.delete(train, 1, axis=0))
    assert np.array_equal(np.asarray(published.test.images[:]), np.delete(test, 2, axis=0))
    assert published.test.labels.tolist() == [0, 0, 1, 2, 2]
    dataset = load("folder", Source(tmp_path, memory=memory), validation_fraction=0.5, seed=0)
    assert dataset.left_out == published.left_out


def test_a_class_that_ends_empty_is_refused(tmp_path: Path) -> None:
    _classes(tmp_path / "train", 1)
    _classes(tmp_path / "test", 1)
    (tmp_path / "test" / "bee" / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"class 'bee' has no test image that can be read"):
        _read(tmp_path)
    (tmp_path / "train" / "cat" / "0.png").unlink()
    with pytest.raises(InputError, match=r"class 'cat' has no training image that can be read"):
        _read(tmp_path)


def test_splits_of_different_classes_are_refused(tmp_path: Path) -> None:
    _classes(tmp_path / "train", 1)
    _classes(tmp_path / "test", 1)
    (tmp_path / "test" / "dog").mkdir()
    with pytest.raises(InputError, match="train and test must have the same classes, not 'dog'"):
        _read(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        _image(tmp_path / "images" / name / "0.png")
        (tmp_path / "images" / name / "0.png").write_bytes(b"")
        (tmp_path / "empty" / name).mkdir(parents=True)
    for root, says in (
        (None, "must be a folder of class folders"),
        (tmp_path / "absent", "must be a folder of class folders"),
        (tmp_path / "empty", "must be a folder of class folders with images"),
        (tmp_path / "images", "must hold images that can be read; none of 2 files can: ant/0.png"),
    ):
        with pytest.raises(InputError, match=says) as error:
            folder_module.read(Source(root))
        assert error.value.field == "data.root"


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    _classes(tmp_path, 5)
    _image(tmp_path / "cat" / "9.png", size=(8, 7))
    with pytest.raises(InputError, match=r"data\.image_size: got None; .* several sizes: 6x5, and 8x7 in cat/9\.png"):
        _read(tmp_path)
    published = _read(tmp_path, image_size=4)
    assert (published.train.shape, len(published.train) + len(published.test)) == ((3, 4, 4), 16)


def _both(root: Path, **options: Any) -> tuple[Dataset, Dataset]:
    """The data set in memory and in files."""
    kept, left = (
        load("folder", Source(root, memory=memory, **options), validation_fraction=0.25, seed=0, limit=6)
        for memory in (4.0, 0.0)
    )
    return kept, left


def test_images_that_do_not_fit_stay_in_their_files_and_are_the_same(tmp_path: Path) -> None:
    _classes(tmp_path / "train", 6)
    _classes(tmp_path / "test", 2, first=100)
    for options in ({}, {"image_size": 4}):
        kept, left = _both(tmp_path, **options)
        assert kept.digest() == left.digest()
        assert kept.shape == left.shape
        for split in ("train", "validation", "test"):
            one, other = getattr(kept, split), getattr(left, split)
            assert isinstance(one.images, np.ndarray)
            assert isinstance(other.images, ImageFiles)
            assert np.array_equal(one.images, other.images[:].numpy())
            assert np.array_equal(one.labels, other.labels)


def test_the_memory_that_decides_is_that_of_all_images_together(tmp_path: Path) -> None:
    _classes(tmp_path, 5)
    needed = 15 * 3 * 6 * 5 / 2**30
    assert isinstance(_read(tmp_path, memory=needed).train.images, np.ndarray)
    assert isinstance(_read(tmp_path, memory=needed * 0.99).train.images, ImageFiles)


def test_large_folders_are_decoded_once_until_a_file_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _classes(tmp_path, 5)
    (tmp_path / "bee" / "9.png").write_bytes(b"no image")
    decoded: list[int] = []
    real = folder_module.decode

    def counted(content: bytes, fit: Fit = AS_IT_IS) -> np.ndarray:
        decoded.append(len(content))
        return real(content, fit)

    monkeypatch.setattr(folder_module, "decode", counted)
    first = _read(tmp_path, image_size=4, memory=0)
    assert len(decoded) == 16
    again = _read(tmp_path, image_size=4, memory=0)
    assert len(decoded) == 16
    assert again.left_out == first.left_out == ("bee/9.png (not an image)",)
    assert again.train.digest() == first.train.digest()

    _read(tmp_path, image_size=5, memory=0)
    assert len(decoded) == 32
    os.utime(tmp_path / "ant" / "0.png", ns=(1, 1))
    _read(tmp_path, image_size=4, memory=0)
    assert len(decoded) == 48
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert _read(tmp_path, image_size=4, memory=0).train.digest() == first.train.digest()
    assert len(decoded) == 64


def test_a_cache_that_cannot_be_written_is_told_and_done_without(tmp_path: Path, cache: Path) -> None:
    _classes(tmp_path, 5)
    cache.write_bytes(b"no folder")
    told: list[str] = []
    assert isinstance(_read(tmp_path, memory=0, tell=told.append).train.images, ImageFiles)
    assert told[0] == "read 15 of 15 images"
    assert told[1].startswith("the next run must read all images again: ")


def test_extra_images_need_the_others_in_memory(tmp_path: Path) -> None:
    _classes(tmp_path / "set", 10)
    np.savez(tmp_path / "extra.npz", images=np.zeros((4, 5, 6, 3), np.uint8), labels=np.arange(4) % 3)

    def extra(memory: float) -> Dataset:
        source = Source(tmp_path / "set", memory=memory)
        return load("folder", source, validation_fraction=0.25, seed=0, extra=tmp_path / "extra.npz")

    assert extra(4.0).extra == 4
    with pytest.raises(InputError, match=r"data\.extra: .* raise data\.memory"):
        extra(0.0)


def test_class_folders_that_are_only_judged_are_a_test_split_whole(tmp_path: Path) -> None:
    images = _classes(tmp_path, 2)
    (tmp_path / "dog").mkdir()
    published = _read(tmp_path, judged=True)
    assert published.classes == (*CLASSES, "dog")
    assert np.array_equal(published.test.images, images)
    assert len(published.train) == 0


@pytest.mark.parametrize("memory", [1.0, 0.0])
def test_names_of_files_that_are_not_utf_8_are_names(tmp_path: Path, memory: float) -> None:
    pixels = _classes(tmp_path, 3)
    os.rename(tmp_path / "ant" / "1.png", os.fsencode(tmp_path / "ant") + b"/1\xff.png")
    (tmp_path / "bee" / os.fsdecode(b"\xfe.png")).write_bytes(b"no image")
    for _ in range(2):  # the second time what was read is known
        found = folder_module.read(Source(tmp_path, memory=memory))
        images, _ = pickle.loads(pickle.dumps(found.train)).tensors()
        assert np.array_equal(images[slice(None)], pixels)
        assert len(found.left_out) == 1
        assert printable(found.left_out[0]) == r"bee/\udcfe.png (not an image)"


def test_two_class_folders_are_not_called_alike(tmp_path: Path) -> None:
    _classes(tmp_path, 1)
    _image(tmp_path / os.fsdecode(b"\xff") / "a.png")
    assert r"\udcff" in folder_module.read(Source(tmp_path)).classes
    _image(tmp_path / r"\udcff" / "a.png")
    with pytest.raises(InputError, match=r"two class folders would be called \\udcff"):
        folder_module.read(Source(tmp_path))
