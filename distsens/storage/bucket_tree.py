"""The files of a data set in an S3 bucket."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from distsens.errors import InputError
from distsens.storage.s3 import S3Place


@dataclass(frozen=True)
class BucketTree:
    """The objects under a prefix as a tree of folders (``distsens.data.Tree``); listed once, when it is first asked.

    Only s3:ListBucket and s3:GetObject are needed. Objects whose names end in ``/`` mark folders, and are no files.
    """

    place: S3Place

    @staticmethod
    def at(url: str) -> BucketTree:
        """The tree at ``s3://bucket/prefix``; `InputError` for anything else. Touches nothing there."""
        try:
            return BucketTree(S3Place.at(url))
        except InputError as error:
            raise InputError("data.root", error.value, error.allowed) from None

    @property
    def url(self) -> str:
        """The prefix as a ``s3://`` URL."""
        return self.place.url

    def folders(self, folder: str) -> tuple[str, ...]:
        """See ``distsens.data.Tree.folders``."""
        inside = self._folders.get(_within(folder), set[str]())
        return tuple(sorted(name for name in inside if not name.startswith(".")))

    def files(self, folder: str) -> list[str]:
        """See ``distsens.data.Tree.files``."""
        return [name for name in self._below(folder) if not _in_hidden_folder(name[len(_within(folder)) :])]

    def beside(self, folder: str) -> list[str]:
        """See ``distsens.data.Tree.beside``."""
        return [name for name in self._below(folder) if "/" not in name[len(_within(folder)) :]]

    def stamps(self, names: Sequence[str]) -> list[str]:
        """Size and entity tag of each; see ``distsens.data.Tree.stamps``."""
        return [self._listed.get(name, "gone") for name in names]

    def read(self, name: str) -> bytes:
        """See ``distsens.data.Tree.read``."""
        return self.place.read(name)

    @cached_property
    def _listed(self) -> dict[str, str]:
        try:
            return {name: stamp for name, stamp in self.place.objects().items() if name and not name.endswith("/")}
        except OSError as error:
            raise InputError("data.root", self.url, f"cannot be listed: {error}") from None

    @cached_property
    def _names(self) -> list[str]:
        return sorted(self._listed)

    @cached_property
    def _folders(self) -> dict[str, set[str]]:
        """By folder, with the slash at its end, the names of those in it."""
        found: dict[str, set[str]] = {}
        for folder in {name.rpartition("/")[0] for name in self._names} - {""}:
            parts = folder.split("/")
            for depth, part in enumerate(parts):
                found.setdefault("".join(f"{above}/" for above in parts[:depth]), set()).add(part)
        return found

    def _below(self, folder: str) -> list[str]:
        """Names in a folder and in those inside it, sorted."""
        top = _within(folder)
        if not top:
            return self._names
        # All names that begin with it lie together; "0" is what follows "/".
        return self._names[bisect_left(self._names, top) : bisect_left(self._names, f"{top[:-1]}0")]

    def __reduce__(self) -> tuple[type[BucketTree], tuple[S3Place]]:
        return BucketTree, (self.place,)  # without the listing, which may be large and which readers do not need


def _within(folder: str) -> str:
    return "" if folder == "." else f"{folder.removeprefix('./')}/"


def _in_hidden_folder(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/")[:-1])
