"""A place: a store of whole files under string keys, wherever it is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from distsens.errors import InputError
from distsens.storage.local import LocalPlace

_FILE = "file:///"
# One slash is enough: pathlib turns "s3://bucket" into "s3:/bucket", which must not become a folder named "s3:".
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")

_LONGEST_KEY = 320  # of a run or sweep, whose own name may have 200 characters
_LONGEST_OBJECT = 1024
_LONGEST_PATH = 4095


class Place(Protocol):
    """A store of whole files under string keys such as ``checkpoints/epoch-0003/model.safetensors``.

    A reader sees a file as it was before a `put` or as it is after it, never in between, even if the writer is killed.
    A prefix stands for whole parts of a key: ``epoch-1`` is one of ``epoch-1/model`` and not of ``epoch-10/model``.
    A string that is no key raises `InputError`; a store that fails raises `OSError`.
    """

    @property
    def url(self) -> str:
        """The absolute address; `open_place` makes the same place of it."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Store the file, in place of an older one under the same key. When this returns, the file is durable."""
        ...

    def get(self, key: str) -> bytes:
        """Return the file; `FileNotFoundError` if there is none."""
        ...

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys of the complete files that equal ``prefix`` or lie under it, sorted."""
        ...

    def delete(self, prefix: str) -> None:
        """Delete the file ``prefix`` or all files under it, with what killed writers left there. Absent is fine."""
        ...

    def check_writable(self) -> None:
        """Write and delete a probe file; `InputError` if that fails. Nothing remains, not even a new folder."""
        ...

    def child(self, name: str) -> Place:
        """Return the place of the keys under ``name``."""
        ...


def open_place(url: str) -> Place:
    """Return the place at a local path (``~`` is the home folder), a ``file:///`` URL or ``s3://bucket/prefix``.

    Touches nothing there.

    Raises
    ------
    InputError
        The address is empty or of a kind that is not supported.
    """
    if url.startswith("s3://"):
        # Only here, because boto3 takes its time to import, and most runs stay on a disk.
        from distsens.storage.s3 import S3Place

        return S3Place.at(url)
    if url.startswith(_FILE):
        path = address(url)
    elif scheme := _SCHEME.match(url):
        shown = f"{scheme[0]}***" if "@" in url else url  # A secret may be before the @.
        raise InputError(
            "storage.path", shown, "must be a local folder (a path or file:///absolute/path) or s3://bucket/prefix"
        )
    else:
        path = os.path.expanduser(url)
    if not path or "\0" in path:
        raise InputError("storage.path", url, "must name a local folder, or s3://bucket/prefix")
    return LocalPlace(Path(os.path.abspath(path)))


def check_room(place: Place) -> None:
    """Refuse a storage below which names of runs and of what they hold would be longer than its kind takes."""
    most = _LONGEST_OBJECT if place.url.startswith("s3://") else _LONGEST_PATH
    where = address(place.url)
    if len(os.fsencode(where)) + _LONGEST_KEY > most:
        raise InputError("storage.path", where, f"names below it would be longer than {most:,} bytes")


def place_name(url: str) -> str:
    """The last part of a place's `url`."""
    return url.rstrip("/").rpartition("/")[2]


def address(url: str) -> str:
    """What one would rather read and type than a place's `url`: the path, where it is a folder."""
    return unquote(url.removeprefix("file://"), errors="surrogateescape") if url.startswith(_FILE) else url
