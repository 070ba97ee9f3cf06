"""Any folder of class folders: JPEG, PNG and other image files of any size."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError

from distsens.data.files import SUFFIXES, UNREADABLE, ImageFiles, decode, image_digest
from distsens.data.images import ImageSet, Published
from distsens.data.source import Source
from distsens.data.split import hold_out
from distsens.data.survey import Survey, known_survey, remember_survey, survey_key
from distsens.data.tree import Tree
from distsens.errors import InputError

_TEST_FOLDERS = ("test", "val")
_TEST_SEED = 0
_FILES_AT_A_TIME = 1024
_READERS = 16  # at the least: from a bucket most of the time is waiting


def read(source: Source) -> Published:
    """Class folders in ``<root>/train`` and ``<root>/test`` (else ``<root>/val``), or directly in ``<root>``.

    Classes are the names of their folders, in alphabetical order. Folders inside a class folder belong to the class.
    Hidden files, files with other than image suffixes and links to folders inside class folders are passed over. Files
    that cannot be decoded are left out and named in ``Published.left_out``.

    Without a test folder, ``test_fraction`` of the images become the test split, stratified and always the same,
    whatever the seed of a run, so that results can be compared. If the data is only judged, all of them do, and a class
    may be without.

    Every file is decoded once. If all images together take more than ``memory`` they are not kept: `ImageFiles` decodes
    them again batch by batch.

    Raises
    ------
    InputError
        If there are no class folders, train and test have different classes, a class has no image that can be read,
        or the images have several sizes and no ``image_size`` is given.
    """
    tree = source.required_tree("a folder of class folders")
    folders = _split_folders(tree)
    classes = tree.folders(folders[0])
    for folder in folders[1:]:
        if (others := tree.folders(folder)) != classes:
            odd = sorted(set(classes) ^ set(others))[0]
            raise InputError(
                "data.root", tree.url, f"{folders[0]} and {folder} must have the same classes, not {odd!r}"
            )
    names, labels = _listing(tree, folders, classes)
    images, problems = _read_files(tree, names, source)

    whole = np.array([number for number in range(len(names)) if number not in problems], np.int64)
    everything = ImageSet(images, labels).take(whole) if problems else ImageSet(images, labels)
    left_out = tuple(f"{names[number]} ({problem})" for number, problem in sorted(problems.items()))
    if len(folders) == 1 and source.judged:
        if len(everything) == 0:
            raise InputError(
                "data.root", tree.url, f"must hold images that can be read; none of {len(names)} files can"
            )
        return Published(classes, everything.take(np.arange(0)), everything, left_out)
    if len(folders) == 1:
        train, test = hold_out(everything.labels, source.test_fraction, _TEST_SEED, "test")
    else:
        from_train = np.array([Path(name).parts[0] == folders[0] for name in names])[whole]
        train, test = np.flatnonzero(from_train), np.flatnonzero(~from_train)
    for part, numbers in (("training", train), ("test", test)):
        for label, name in enumerate(classes):
            if not (everything.labels[numbers] == label).any():
                raise InputError("data.root", tree.url, f"class {name!r} has no {part} image that can be read")
    return Published(classes, everything.take(train), everything.take(test), left_out)


def _split_folders(tree: Tree) -> tuple[str, ...]:
    """Where the class folders are, within the root: for training and test, or for both together."""
    if not tree.folders("."):
        raise InputError("data.root", tree.url, "must be a folder of class folders")
    if not tree.folders("train"):
        return (".",)
    test = [name for name in _TEST_FOLDERS if tree.folders(name)]
    return ("train", *test[:1])


def _listing(
    tree: Tree, folders: Sequence[str], classes: Sequence[str]
) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.int64]]:
    """Names of all image files, by split, class and name; and their labels."""
    names, labels = [], []
    for folder in folders:
        for label, name in enumerate(classes):
            found = [file for file in tree.files(f"{folder}/{name}") if _is_image_name(file.rpartition("/")[2])]
            names += found
            labels += [label] * len(found)
    if not names:
        raise InputError("data.root", tree.url, "must be a folder of class folders with images")
    return np.array(names), np.array(labels, np.int64)


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _read_files(
    tree: Tree, names: npt.NDArray[np.str_], source: Source
) -> tuple[npt.NDArray[np.uint8] | ImageFiles, dict[int, str]]:
    """All images, in memory if they fit, and by number what is wrong with those that cannot be decoded."""
    size = _size(tree, names, source.image_size)
    if len(names) * 3 * math.prod(size) <= source.memory * 2**30:
        images = np.zeros((len(names), 3, *size), np.uint8)
        return images, _decode_all(tree, names, source, size, images.__setitem__)

    key = survey_key(tree, names.tolist(), source.image_size)
    survey = known_survey(key)
    if survey is None:
        digests = np.zeros((len(names), 32), np.uint8)

        def keep_digest(number: int, pixels: npt.NDArray[np.uint8]) -> None:
            digests[number] = image_digest(pixels)

        survey = Survey(digests, _decode_all(tree, names, source, size, keep_digest))
        try:
            remember_survey(key, survey)
        except OSError as problem:
            source.tell(f"the next run must read all images again: {problem}")
    return ImageFiles(tree, names, size, source.image_size, survey.digests), survey.problems


def _size(tree: Tree, names: npt.NDArray[np.str_], image_size: int | None) -> tuple[int, int]:
    """(H, W) of the decoded images; without an ``image_size`` that of the first one that can be decoded."""
    if image_size is not None:
        return image_size, image_size
    for name in names:
        with contextlib.suppress(*UNREADABLE):
            _, height, width = decode(tree.read(str(name)), None).shape
            return height, width
    raise InputError("data.root", tree.url, f"must hold images that can be read; none of {len(names)} files can")


def _decode_all(
    tree: Tree,
    names: npt.NDArray[np.str_],
    source: Source,
    size: tuple[int, int],
    keep: Callable[[int, npt.NDArray[np.uint8]], None],
) -> dict[int, str]:
    """Decode every file once, in threads, and give it to ``keep``; what is wrong with those that cannot be decoded."""
    problems: dict[int, str] = {}

    def decode_one(number: int) -> None:
        try:
            pixels = decode(tree.read(str(names[number])), source.image_size)
        except UNREADABLE as problem:
            problems[number] = _in_words(problem)
            return
        if pixels.shape[1:] != size:
            (height, width), (first_height, first_width) = pixels.shape[1:], size
            raise InputError(
                "data.image_size",
                None,
                f"must be given, as the images have several sizes: {first_width}x{first_height}, and "
                f"{width}x{height} in {names[number]}",
            )
        keep(number, pixels)

    with ThreadPoolExecutor(max(_READERS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), _FILES_AT_A_TIME):
            stop = min(start + _FILES_AT_A_TIME, len(names))
            list(pool.map(decode_one, range(start, stop)))
            source.tell(f"read {stop:,} of {len(names):,} images")
    return problems


def _in_words(problem: BaseException) -> str:
    if isinstance(problem, UnidentifiedImageError):
        return "not an image"
    return (isinstance(problem, OSError) and problem.strerror) or str(problem) or type(problem).__name__
