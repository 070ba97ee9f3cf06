"""One checkpoint: a folder of files with a ``manifest.json`` that is written last and deleted first.

A folder without one is what a killed writer left, and is never taken for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from distsens.errors import InputError
from distsens.storage.json_files import read_json, write_json
from distsens.storage.keys import check_key
from distsens.storage.manifest import FileRecord, Manifest, decode, encode
from distsens.storage.place import Place

MANIFEST = "manifest.json"


class CheckpointError(Exception):
    """A checkpoint that cannot be used: one line that says which, which of its files, and what is wrong."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its manifest, and the content of its files by name."""

    manifest: Manifest
    files: dict[str, bytes]


def save(
    place: Place, folder: str, files: Mapping[str, bytes], *, epoch: int, experiment: str, metrics: Mapping[str, float]
) -> Manifest:
    """Store a checkpoint in a folder of the place, instead of an older one; see `Checkpoints.save`."""
    if epoch < 0:
        raise InputError("epoch", epoch, "must be 0 or more")
    if MANIFEST in map(check_key, files):
        raise InputError("files", MANIFEST, "this name belongs to the checkpoint's own list of files")
    records = {name: FileRecord.of(data) for name, data in files.items()}
    manifest = Manifest(epoch, experiment, dict(metrics), records, _now())
    document = encode(manifest)

    delete(place, folder)
    for name, data in files.items():
        place.put(f"{folder}/{name}", data)
    write_json(place, f"{folder}/{MANIFEST}", document)
    return manifest


def load(folder: Place) -> Checkpoint:
    """Return the checkpoint with every file verified; `CheckpointError` if one is missing or altered."""
    return load_files(folder, load_manifest(folder))


def load_files(folder: Place, manifest: Manifest) -> Checkpoint:
    """Return the checkpoint that the manifest lists; see `load`."""
    files = {}
    for name, record in manifest.files.items():
        try:
            files[name] = folder.get(name)
        except FileNotFoundError as error:
            raise _error(folder, name, "is missing") from error
        except InputError as error:  # no key at all
            raise _error(folder, MANIFEST, f"is damaged: {error}") from error
        if fault := record.fault(files[name]):
            raise _error(folder, name, fault)
    return Checkpoint(manifest, files)


def load_manifest(folder: Place) -> Manifest:
    """Return the manifest alone; `CheckpointError` if it is missing or altered."""
    try:
        return decode(read_json(folder, MANIFEST))
    except FileNotFoundError as error:
        raise _error(folder, MANIFEST, "is missing: the checkpoint is not complete") from error
    except ValueError as error:
        raise _error(folder, MANIFEST, f"is damaged: {error}") from error


def delete(place: Place, folder: str) -> None:
    """Delete the checkpoint in a folder of the place, or what is left of one."""
    place.delete(f"{folder}/{MANIFEST}")
    place.delete(folder)


def _error(folder: Place, name: str, fault: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {folder.url}: {name}: {fault}")


def _now() -> str:
    # Always with microseconds, so that later is also later in the alphabet.
    return datetime.now(UTC).isoformat(timespec="microseconds")
