"""The files of a data set in an S3 bucket."""

from __future__ import annotations

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
        top = _within(folder)
        parts = (name[len(top) :].split("/") for name in self._listed if name.startswith(top))
        return tuple(sorted({first for first, *below in parts if below and not first.startswith(".")}))

    def files(self, folder: str) -> list[str]:
        """See ``distsens.data.Tree.files``."""
        top = _within(folder)
        return sorted(name for name in self._listed if name.startswith(top) and not _in_hidden_folder(name[len(top) :]))

    def beside(self, folder: str) -> list[str]:
        """See ``distsens.data.Tree.beside``."""
        top = _within(folder)
        return sorted(name for name in self._listed if name.startswith(top) and "/" not in name[len(top) :])

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

    def __reduce__(self) -> tuple[type[BucketTree], tuple[S3Place]]:
        return BucketTree, (self.place,)  # without the listing, which may be large and which readers do not need


def _within(folder: str) -> str:
    return "" if folder == "." else f"{folder.removeprefix('./')}/"


def _in_hidden_folder(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/")[:-1])
