"""Where the files of a data set are: a folder, or anything that lists and reads like one, such as a bucket."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Protocol


class Tree(Protocol):
    """Files by their names from the root on, with ``/`` between folders; small enough to travel to every worker."""

    @property
    def url(self) -> str:
        """Where it is, for messages."""

    def folders(self, folder: str) -> tuple[str, ...]:
        """Names of the folders in a folder (``.`` is the root), sorted; none if there is no such folder.

        Hidden ones, whose names begin with a dot, are passed over.
        """

    def files(self, folder: str) -> list[str]:
        """Names, from the root on and sorted, of the files in a folder and in the folders inside it.

        Hidden folders, and links to folders, are passed over.
        """

    def beside(self, folder: str) -> list[str]:
        """Names, from the root on and sorted, of the files in a folder itself."""

    def stamps(self, names: Sequence[str]) -> list[str]:
        """For each file what changes with its content, without reading it."""

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises
        ------
        OSError
            If it is gone or cannot be read.
        """


@dataclass(frozen=True)
class LocalTree:
    """A folder; absolute, if workers on other machines are to find the same files there."""

    root: Path

    @property
    def url(self) -> str:
        """Its path."""
        return str(self.root)

    def folders(self, folder: str) -> tuple[str, ...]:
        """See `Tree.folders`."""
        return tuple(sorted(entry.name for entry in self._entries(folder) if entry.is_dir() and entry.name[0] != "."))

    def files(self, folder: str) -> list[str]:
        """See `Tree.files`."""
        found = []
        for inside, folders, names in os.walk(self.root / folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [os.path.join(inside, name) for name in names]
        return sorted(os.path.relpath(path, self.root) for path in found)

    def beside(self, folder: str) -> list[str]:
        """See `Tree.beside`."""
        return sorted(os.path.relpath(entry.path, self.root) for entry in self._entries(folder) if not entry.is_dir())

    def stamps(self, names: Sequence[str]) -> list[str]:
        """Size and time of change of each; see `Tree.stamps`."""
        return [self._stamp(self.root / name) for name in names]

    def read(self, name: str) -> bytes:
        """See `Tree.read`."""
        path = self.root / name
        if not S_ISREG(path.stat().st_mode):  # a pipe would keep its reader waiting
            raise OSError("it is no file, but a pipe, a socket or a device")
        return path.read_bytes()

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """What is in a folder; unlike paths, entries mostly know without asking the disk whether they are folders."""
        path = self.root / folder
        if not path.is_dir():
            return []
        with os.scandir(path) as entries:
            return list(entries)

    def _stamp(self, path: Path) -> str:
        status = path.stat() if path.exists() else None
        return f"{status.st_size} {status.st_mtime_ns}" if status else "gone"
