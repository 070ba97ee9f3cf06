"""Runs in storage: a folder each, with what is needed to resume."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from distsens.distributed.places import followed, pinned
from distsens.errors import InputError
from distsens.experiment import Experiment, merge
from distsens.storage import (
    RUN_FILE,
    CheckpointError,
    Checkpoints,
    Place,
    RunRecord,
    open_place,
    place_name,
    read_run,
    write_run,
)
from distsens.training import best_epoch, stored_history


@dataclass(frozen=True)
class StoredRun:
    """A run: its name, its place, its experiment and the MLflow run that tracks it."""

    name: str
    place: Place
    experiment: Experiment
    mlflow_run_id: str

    def save(self) -> None:
        """Write ``run.json``, which makes the run resumable."""
        write_run(self.place, RunRecord(self.experiment.model_dump(mode="json"), self.mlflow_run_id))


def new_name(experiment: Experiment) -> str:
    """A name for a new run that no other has."""
    return f"{experiment.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def pin_places(experiment: Experiment, storage: Place, tracking_uri: str) -> Experiment:
    """The experiment with the absolute addresses of its storage and MLflow store; see :func:`pinned`."""
    places = pinned(experiment.tracking.uri, storage, tracking_uri)
    return Experiment.parse(merge(experiment.model_dump(mode="json"), places))


def find_run(name: str, storage_url: str) -> StoredRun:
    """The run of that name in the storage, or the run at that path; its places are those where it was found."""
    place = open_place(name) if "/" in name else open_place(storage_url).child(name)
    place.check_writable()  # First, because it gives up within seconds, and says why.
    try:
        record = read_run(place)
    except InputError as error:
        raise InputError("resume", name, error.allowed) from None
    except OSError:
        if "/" in name:
            raise InputError("resume", name, f"there is no {RUN_FILE} of a run") from None
        runs = sorted(key.split("/")[0] for key in open_place(storage_url).keys("") if key.endswith(f"/{RUN_FILE}"))
        known = ", ".join(runs[-5:]) or "none yet"
        raise InputError(
            "resume", name, f"there is no such run in {storage_url}; the last runs there: {known}"
        ) from None
    try:
        experiment = Experiment.parse(followed(record.experiment, place, record.mlflow_run_id))
    except InputError as error:
        raise InputError("resume", name, f"its {RUN_FILE} is not of this version ({error})") from None
    return StoredRun(place_name(place.url), place, experiment, record.mlflow_run_id)


def check_checkpoints(run: StoredRun) -> None:
    """Refuse to resume from checkpoints of which none can be used, or the newest is another experiment's.

    So is a run whose best epoch cannot be read: at its end there might be nothing to test. Without any checkpoint the
    run was ended before its first, and begins anew.
    """
    checkpoints = Checkpoints(run.place)
    found = checkpoints.newest()
    if found.checkpoint is None:
        if found.skipped:
            raise InputError("resume", run.name, f"none of its checkpoints can be used: {found.skipped[0]}")
        return
    newest = found.checkpoint.manifest
    if newest.experiment != run.experiment.digest():
        raise InputError(
            "resume", run.name, f"its checkpoint of epoch {newest.epoch} was written by another experiment"
        )
    try:
        best = best_epoch(stored_history(found.checkpoint.files))
    except InputError as error:
        allowed = f"its checkpoint of epoch {newest.epoch} cannot be used: its {error.value} {error.allowed}"
        raise InputError("resume", run.name, allowed) from None
    if best is not None and best.epoch != newest.epoch:
        try:
            checkpoints.load(best.epoch)
        except CheckpointError as error:
            raise InputError("resume", run.name, f"its best epoch, {best.epoch}, cannot be used: {error}") from None


def with_changes(run: StoredRun, changes: dict[str, Any]) -> Experiment:
    """The run's experiment with other workers, checkpoint policy or places; nothing that would change its result."""
    changed = Experiment.parse(merge(run.experiment.model_dump(mode="json"), changes))
    if changed.digest() != run.experiment.digest():
        fields = ", ".join(run.experiment.differences(changed))
        raise InputError(
            "resume",
            run.name,
            f"it is another experiment ({fields} differ); only workers, checkpoint, data.root and the like may change",
        )
    return changed
