"""Any folder of class folders: JPEG, PNG and other image files of any size."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError

from distsens.data.files import UNREADABLE, ImageFiles, decode, image_digest
from distsens.data.images import ImageSet, Published
from distsens.data.layout import Split, find_layout, in_words, is_image_name, is_passed_over
from distsens.data.source import Source
from distsens.data.survey import Survey, known_survey, remember_survey, survey_key
from distsens.data.tree import Tree
from distsens.errors import InputError

_FILES_AT_A_TIME = 1024
_READERS = 16  # at the least: from a bucket most of the time is waiting


def read(source: Source) -> Published:
    """Class folders, in the folders of their splits or without any: see `find_layout`.

    Classes are the names of their folders, in alphabetical order; bytes that are no UTF-8 are escaped. Folders inside a
    class folder belong to the class. Hidden files and links to folders inside class folders are passed over. Files that
    cannot be decoded are left out and named in ``Published.left_out``, those with other than image suffixes are counted
    in ``Published.notices``.

    Images without splits are training images; if the data is only judged they are the test split, and a class may be
    without.

    Every file is decoded once. If all images together take more than ``memory`` they are not kept: `ImageFiles` decodes
    them again batch by batch.

    Raises
    ------
    InputError
        If there are no class folders, splits have different classes, a class has no image that can be read, or the
        images have several sizes and no ``image_size`` is given.
    """
    tree = source.required_tree("a folder of class folders")
    layout = find_layout(tree)
    places: dict[Split, str] = layout.splits
    if layout.unsplit is not None:
        places = {"test" if source.judged else "train": layout.unsplit}
    if source.without_training and len(places) > 1:
        places = {split: folder for split, folder in places.items() if split != "train"}
    files = _listing(tree, tuple(places.values()), layout.classes)
    images, problems = _read_files(tree, files.names, source)

    whole = np.array([number for number in range(len(files.names)) if number not in problems], np.int64)
    everything = ImageSet(images, files.labels).take(whole) if problems else ImageSet(images, files.labels)
    left_out = tuple(f"{files.names[number]} ({problem})" for number, problem in sorted(problems.items()))
    if len(everything) == 0:
        allowed = f"must hold images that can be read; none of {len(files.names)} files can: {left_out[0]}"
        raise InputError("data.root", tree.url, allowed)
    splits = {
        split: everything.take(np.flatnonzero(files.places[whole] == number)) for number, split in enumerate(places)
    }
    if not (source.judged and layout.unsplit is not None):
        for split, part in splits.items():
            _check_every_class(tree, layout.classes, split, part, left_out)
    train = splits.get("train", everything.take(np.arange(0)))
    return Published(
        _named(tree, layout.classes),
        train,
        splits.get("test"),
        splits.get("validation"),
        left_out,
        (*layout.notices, *files.notices),
    )


def _named(tree: Tree, folders: Sequence[str]) -> tuple[str, ...]:
    """The classes of folders. Of bytes that are no UTF-8 no table takes the name: they are written as Python does."""
    names = tuple(name.encode(errors="backslashreplace").decode() for name in folders)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError("data.root", tree.url, f"two class folders would be called {twice}: rename the one not UTF-8")
    return names


def _check_every_class(
    tree: Tree, classes: Sequence[str], split: Split, part: ImageSet, left_out: Sequence[str]
) -> None:
    for label, name in enumerate(classes):
        if not (part.labels == label).any():
            which = {"train": "training"}.get(split, split)
            reasons = [file for file in left_out if f"/{name}/" in f"/{file}"]
            reason = f": {reasons[0]}" if reasons else ""
            raise InputError("data.root", tree.url, f"class {name!r} has no {which} image that can be read{reason}")


@dataclass(frozen=True)
class _Files:
    """Names of all image files, by place, class and name, with their labels and the numbers of their places."""

    names: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    notices: tuple[str, ...]


def _listing(tree: Tree, folders: Sequence[str], classes: Sequence[str]) -> _Files:
    names: list[str] = []
    labels: list[int] = []
    places: list[int] = []
    others: list[str] = []
    for place, folder in enumerate(folders):
        for label, name in enumerate(classes):
            listed = tree.files(name if folder == "." else f"{folder}/{name}")
            found = [file for file in listed if is_image_name(file.rpartition("/")[2])]
            rest = [file for file in listed if not is_image_name(file.rpartition("/")[2])]
            rest = [file for file in rest if not is_passed_over(file.rpartition("/")[2])]
            if rest and not found:
                allowed = f"class folder {name} of {folder} holds no images, but {in_words(rest)}: move it elsewhere"
                raise InputError("data.root", tree.url, allowed)
            names += found
            labels += [label] * len(found)
            places += [place] * len(found)
            others += rest
    if not names:
        raise InputError("data.root", tree.url, "must be a folder of class folders with images")
    notices = (f"{len(others)} files are no images by their names and are left out: {in_words(others)}",)
    return _Files(np.array(names), np.array(labels, np.int64), np.array(places, np.int64), notices if others else ())


def _read_files(
    tree: Tree, names: npt.NDArray[np.str_], source: Source
) -> tuple[npt.NDArray[np.uint8] | ImageFiles, dict[int, str]]:
    """All images, in memory if they fit, and by number what is wrong with those that cannot be decoded."""
    size = _size(tree, names, source.image_size)
    if len(names) * 3 * math.prod(size) <= source.memory * 2**30:
        images = np.zeros((len(names), 3, *size), np.uint8)
        return images, _decode_all(tree, names, source, size, images.__setitem__)

    key = survey_key(tree, names.tolist(), source.fit)
    survey = known_survey(key, len(names))
    if survey is None:
        digests = np.zeros((len(names), 32), np.uint8)

        def keep_digest(number: int, pixels: npt.NDArray[np.uint8]) -> None:
            digests[number] = image_digest(pixels)

        survey = Survey(digests, _decode_all(tree, names, source, size, keep_digest))
        try:
            remember_survey(key, survey)
        except OSError as problem:
            source.tell(f"the next run must read all images again: {problem}")
    return ImageFiles(tree, names, size, source.fit, survey.digests), survey.problems


def _size(tree: Tree, names: npt.NDArray[np.str_], image_size: int | None) -> tuple[int, int]:
    """(H, W) of the decoded images; without an ``image_size`` that of the first one that can be decoded."""
    if image_size is not None:
        return image_size, image_size
    first = ""
    for name in names:
        try:
            _, height, width = decode(tree.read(str(name))).shape
        except UNREADABLE as problem:
            first = first or f"{name} ({_in_words(problem)})"
        else:
            return height, width
    allowed = f"must hold images that can be read; none of {len(names)} files can: {first}"
    raise InputError("data.root", tree.url, allowed)


def _decode_all(
    tree: Tree,
    names: npt.NDArray[np.str_],
    source: Source,
    size: tuple[int, int],
    keep: Callable[[int, npt.NDArray[np.uint8]], None],
) -> dict[int, str]:
    """Decode every file once, in threads, and give it to ``keep``; what is wrong with those that cannot be decoded."""
    problems: dict[int, str] = {}
    fit = source.fit

    def decode_one(number: int) -> None:
        try:
            pixels = decode(tree.read(str(names[number])), fit)
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
