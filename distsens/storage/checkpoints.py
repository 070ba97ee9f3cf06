"""Checkpoints of one run, by epoch, in a place: ``<prefix>/epoch-0003/<file>``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

from distsens.errors import InputError
from distsens.storage.checkpoint import MANIFEST, Checkpoint, CheckpointError, delete, load_files, load_manifest, save
from distsens.storage.manifest import Manifest
from distsens.storage.place import Place

# Exactly what `_folder` writes, so that no two folders stand for one epoch.
_FOLDER = re.compile(r"epoch-(\d{4}|[1-9]\d{4,})")


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that can be used, if any, and one line for each newer one that cannot."""

    checkpoint: Checkpoint | None
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints under a prefix of a place.

    One process at a time may write; any number may read meanwhile. A reader gets the files of one `save`, all of them,
    or an error, never a mixture.
    """

    place: Place
    prefix: str = "checkpoints"

    def save(
        self, epoch: int, files: Mapping[str, bytes], *, experiment: str, metrics: Mapping[str, float]
    ) -> Manifest:
        """Store a checkpoint, in place of an older one of the same epoch.

        Parameters
        ----------
        epoch : number of the epoch, from 0.
        files : content by name; the name ``manifest.json`` is taken.
        experiment : digest that identifies the experiment, so that a reader can refuse the checkpoint of another.
        metrics : what was measured at this epoch; NaN and infinity are kept.
        """
        return save(self.place, self._folder(epoch), files, epoch=epoch, experiment=experiment, metrics=metrics)

    def load(self, epoch: int) -> Checkpoint:
        """Return the checkpoint with every file verified; `CheckpointError` if one is missing or altered."""
        return load_files(self.place.child(self._folder(epoch)), self._manifest(epoch))

    def newest(self) -> Found:
        """Return the newest checkpoint that verifies, and say which newer ones do not and why.

        A place that cannot be read raises `OSError`: falling back for that would lose epochs that are there.
        """
        skipped: list[str] = []
        for epoch in reversed(self._epochs()):
            try:
                return Found(self.load(epoch), tuple(skipped))
            except CheckpointError as error:
                skipped.append(str(error))
        return Found(None, tuple(skipped))

    def manifests(self) -> list[Manifest]:
        """Return the manifests of the complete checkpoints by ascending epoch, without reading their other files."""
        manifests = []
        for epoch in self._epochs():
            with suppress(CheckpointError):  # Without a sound manifest there is no checkpoint.
                manifests.append(self._manifest(epoch))
        return manifests

    def prune(self, keep: int, protect: Collection[int] = ()) -> None:
        """Delete all but the newest ``keep`` complete checkpoints and the epochs in ``protect``.

        Incomplete ones older than the newest complete one are deleted too; a newer one may be in the making.
        """
        if keep < 1:
            raise InputError("keep", keep, "must be 1 or more")
        complete = [manifest.epoch for manifest in self.manifests()]
        if not complete:
            return
        kept = {*complete[-keep:], *protect}
        for epoch in self._epochs():
            if epoch < complete[-1] and epoch not in kept:
                delete(self.place, self._folder(epoch))

    def _epochs(self) -> list[int]:
        """All epochs with any file, complete or not, ascending."""
        start = len(self.prefix) + 1
        folders = {key[start:].partition("/")[0] for key in self.place.keys(self.prefix)}
        return sorted(int(match[1]) for match in map(_FOLDER.fullmatch, folders) if match)

    def _manifest(self, epoch: int) -> Manifest:
        folder = self.place.child(self._folder(epoch))
        manifest = load_manifest(folder)
        if manifest.epoch != epoch:
            raise CheckpointError(f"checkpoint {folder.url}: {MANIFEST}: belongs to epoch {manifest.epoch}")
        return manifest

    def _folder(self, epoch: int) -> str:
        return f"{self.prefix}/epoch-{epoch:04d}"
