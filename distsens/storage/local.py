"""A place on a disk: each file is written aside, made durable, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from distsens.errors import InputError
from distsens.storage.keys import check_key, is_key


@dataclass(frozen=True)
class LocalPlace:
    """A folder that serves as a `Place`; it is created by the first `put`."""

    root: Path

    def __post_init__(self) -> None:
        # A relative path would mean another folder in each worker, whose working folders differ.
        if not self.root.is_absolute():
            raise InputError("storage.path", str(self.root), "must be absolute; open_place makes it so")

    @property
    def url(self) -> str:
        """The folder as a ``file:///`` URL."""
        return self.root.as_uri()

    def put(self, key: str, data: bytes) -> None:
        """Store the file; see `Place.put`."""
        path = self._path(key)
        _make_folder(path.parent)
        # In the same folder, because only a rename within one file system is atomic.
        with _temporary_file(path.parent, data) as temporary:
            os.replace(temporary, path)
        _sync_folder(path.parent)

    def get(self, key: str) -> bytes:
        """Return the file; see `Place.get`."""
        path = self._path(key)
        with suppress(NotADirectoryError):
            if S_ISREG(path.stat().st_mode):  # a pipe would keep its reader waiting
                return path.read_bytes()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    def keys(self, prefix: str = "") -> list[str]:
        """Return the sorted keys; see `Place.keys`. Files whose names are no keys are not listed."""
        top = self._path(prefix) if prefix else self.root
        if prefix and top.is_file():
            return [prefix]
        paths = (
            Path(folder, name) for folder, _, names in os.walk(top, onerror=_raise_unless_absent) for name in names
        )
        return sorted(filter(is_key, (path.relative_to(self.root).as_posix() for path in paths)))

    def delete(self, prefix: str) -> None:
        """Delete the file or folder; see `Place.delete`."""
        path = self._path(prefix)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
        # Durable before the caller goes on: a manifest must not come back after its files are gone.
        if path.parent.is_dir():
            _sync_folder(path.parent)

    def check_writable(self) -> None:
        """Write and delete a probe file; see `Place.check_writable`.

        Where the folder does not exist yet, the probe is written in the nearest folder above it that does. Making the
        folders and removing them again could take one away from under another run that starts at the same time.
        """
        try:
            nearest = next(path for path in (self.root, *self.root.parents) if os.path.lexists(path))
            with _temporary_file(nearest, b"probe"):
                pass
        except OSError as error:
            raise InputError("storage.path", self.url, f"must be a folder that can be written: {error}") from error

    def child(self, name: str) -> LocalPlace:
        """Return the place of a folder in this one; see `Place.child`."""
        return LocalPlace(self._path(name))

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)


@contextmanager
def _temporary_file(folder: Path, data: bytes) -> Iterator[Path]:
    """Write a durable file whose name is no key; it is gone at the end unless the body has renamed it."""
    # Not the tempfile module: its files can be read by their owner alone, and a rename would keep that.
    path = folder / f".tmp-{secrets.token_hex(8)}"
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make the folder and those above it, each durable: a file is only as safe as the folders that lead to it."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_unless_absent(error: OSError) -> None:
    # By default os.walk takes a folder that it cannot read for an empty one: a run would start over, without a word.
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
