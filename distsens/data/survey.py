"""What the one reading of a large image folder found, remembered so that the next run need not decode it all again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL

from distsens.data.files import Fit
from distsens.data.tree import Tree
from distsens.scratch import scratch_folder
from distsens.strict_npz import load_npz

_DECODING = 2
"""Counts the ways in which this package has decoded the same file to other pixels."""


@dataclass(frozen=True)
class Survey:
    """The digest of every image (uint8 (N, 32), see ``image_digest``), and by number what is wrong with the others."""

    digests: npt.NDArray[np.uint8]
    problems: dict[int, str]


def survey_key(tree: Tree, names: Sequence[str], fit: Fit) -> str:
    """Changes with the name or content of any file, with what decoding makes of it, and with Pillow's version."""
    content = hashlib.sha256(f"{PIL.__version__} {_DECODING} {fit}".encode())
    for name, stamp in zip(names, tree.stamps(names), strict=True):
        content.update(os.fsencode(name) + b"\0" + stamp.encode() + b"\0")
    return content.hexdigest()


def known_survey(key: str, images: int) -> Survey | None:
    """The survey of so many images that is remembered under this key; None if there is none, or another, or damaged."""
    try:
        found = load_npz(_path(key), ("key", "digests", "numbers", "problems"))
    except (OSError, ValueError):
        return None
    digests, numbers, problems = found["digests"], found["numbers"], found["problems"]
    known = found["key"].shape == () and found["key"].dtype.kind == "U" and found["key"].item() == key
    whole = digests.dtype == np.uint8 and digests.shape == (images, 32)
    listed = numbers.dtype == np.int64 and problems.dtype.kind == "U" and numbers.shape == problems.shape
    if not (known and whole and listed and numbers.ndim == 1) or ((numbers < 0) | (numbers >= images)).any():
        return None
    return Survey(digests, dict(zip(numbers.tolist(), problems.tolist(), strict=True)))


def remember_survey(key: str, survey: Survey) -> None:
    """Write the survey to the user's cache folder, whole or not at all.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path.parent) as folder:
        written = folder / path.name
        np.savez_compressed(
            written,
            key=np.array(key),
            digests=survey.digests,
            numbers=np.array(list(survey.problems), np.int64),
            problems=np.array(list(survey.problems.values()), np.str_),
        )
        written.replace(path)


def _path(key: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "distsens" / f"{key}.npz"
