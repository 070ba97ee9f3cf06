"""Temporary folders: what a process that was killed has left of them, the next one removes."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

# Where several machines share a folder, each looks after its own: a lock may not be seen from another.
_PREFIX = f"distsens-{re.sub(r'[^A-Za-z0-9.-]+', '-', platform.node())[:64]}-"
_WITH_IT = "with-it"


@contextmanager
def scratch_folder(where: Path | None = None) -> Iterator[Path]:
    """A folder that is gone at the end of the block, and of a process that was killed when another one needs one there.

    Its process holds a lock on it, which ends with the process however that ends; what nobody holds is of nobody.

    Parameters
    ----------
    where : the folder to make it in, hidden, so that what is made in it can be renamed to its place; default the
        machine's folder for temporary files.
    """
    place = Path(tempfile.gettempdir()) if where is None else where
    prefix = _PREFIX if where is None else f".{_PREFIX}"
    _remove_left(place, prefix)
    folder, lock = _made(place, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def goes_with(folder: Path, other: Path) -> None:
    """Let another folder be removed with one of `scratch_folder` that a killed process has left, and only then."""
    (folder / _WITH_IT).symlink_to(other, target_is_directory=True)


def _made(place: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        # Another process may have taken it, before it was locked, for one that was left.
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # on a file system without locks it is never taken for one that was left
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


@cache
def _remove_left(place: Path, prefix: str) -> None:
    for folder in place.glob(f"{prefix}*"):
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(folder)
            finally:
                os.close(lock)


def _remove(folder: Path) -> None:
    with_it = folder / _WITH_IT
    if with_it.is_symlink():
        shutil.rmtree(with_it.readlink(), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
