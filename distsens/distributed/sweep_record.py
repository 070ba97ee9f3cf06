"""Sweeps in storage: a folder each, with what is needed to resume, its trials, and Ray Tune's own state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from distsens.distributed.places import followed, named_document
from distsens.errors import InputError
from distsens.report.sweep import TrialState
from distsens.search import SweepPlan
from distsens.storage import Place, open_place, place_name, read_json, write_json
from distsens.strict_json import Document, load_as

SWEEP_FILE = "sweep.json"
TUNE_FOLDER = "tune"
RESULT_FILE = "result.json"
"""What a rung that is done leaves in the folder of its training."""
_TRIAL_FILE = "trial.json"
_CHAMPION_FILE = "champion.json"
_TUNE_STATE = f"{TUNE_FOLDER}/experiment_state-*.json"
_FORMAT = 1


@dataclass(frozen=True)
class StoredSweep:
    """A sweep: its name, its place, the recipe with ``search`` and ``sweep``, and its MLflow run."""

    name: str
    place: Place
    recipe: dict[str, Any]
    mlflow_run_id: str

    @property
    def plan(self) -> SweepPlan:
        """The recipe, parsed."""
        return SweepPlan.parse(self.recipe)

    def save(self) -> None:
        """Write ``sweep.json``, which makes the sweep resumable."""
        write_json(
            self.place, SWEEP_FILE, {"format": _FORMAT, "recipe": self.recipe, "mlflow_run_id": self.mlflow_run_id}
        )

    def keep(self, trial: TrialState) -> None:
        """Write down what is known of a trial."""
        write_json(self.place.child(f"trials/{trial.trial}"), _TRIAL_FILE, trial.to_dict())

    def trials(self) -> dict[str, TrialState]:
        """What earlier sessions knew of the trials, by id."""
        keys = [key for key in self.place.keys("trials") if key.endswith(f"/{_TRIAL_FILE}")]
        found = {}
        for key in sorted(keys):
            with self._damaged(key):
                one = TrialState.from_dict(read_json(self.place, key))
                if key != f"trials/{one.trial}/{_TRIAL_FILE}":
                    raise ValueError(f"it is of trial {one.trial}")
            found[one.trial] = one
        return found

    @contextmanager
    def _damaged(self, key: str) -> Iterator[None]:
        """Refuse a file that is not what it should be; nothing else of the sweep is touched."""
        try:
            yield
        except ValueError as error:
            allowed = f"its {key} is damaged ({error}); its trials stay as they are"
            raise InputError("resume", self.name, allowed) from None

    def forget(self, trial: str) -> None:
        """Delete what a trial has left."""
        self.place.delete(f"trials/{trial}")

    def keep_champion(self, trial: str, run: str, result: dict[str, Any] | None) -> None:
        """Write down which run trains the winner, and, when it has ended well, what the summary says of it."""
        write_json(self.place, _CHAMPION_FILE, {"trial": trial, "run": run, "result": result})

    def champion(self, trial: str) -> tuple[str, dict[str, Any] | None] | None:
        """The run that trains this winner, and its result: what :meth:`keep_champion` wrote; None before."""
        try:
            with self._damaged(_CHAMPION_FILE):
                known = load_as(_Champion, self.place.get(_CHAMPION_FILE))
        except FileNotFoundError:
            return None
        return (known.run, known.result) if known.trial == trial else None


class _Sweep(Document):
    """What ``sweep.json`` holds; the recipe is for `SweepPlan` to check."""

    recipe: dict[str, Any]
    mlflow_run_id: str


class _Champion(Document):
    trial: str
    run: str
    result: dict[str, Any] | None


def find_sweep(name: str, storage_url: str) -> StoredSweep:
    """The sweep of that name in the storage, or the one at that path; its places are those where it was found."""
    place = open_place(name) if "/" in name else open_place(storage_url).child(name)
    place.check_writable()
    try:
        document = named_document(place, SWEEP_FILE, name, "a sweep")
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise InputError("resume", name, f"its {SWEEP_FILE} is not of this version's format ({_FORMAT})")
        known = load_as(_Sweep, document)
        recipe = followed(known.recipe, place, known.mlflow_run_id)
    except InputError:
        raise
    except ValueError as error:
        raise InputError("resume", name, f"its {SWEEP_FILE} is damaged: {error}") from None
    _check_tune_state(name, place)
    sweep = StoredSweep(place_name(place.url), place, recipe, known.mlflow_run_id)
    sweep.trials()  # Refused here, where nothing has been started yet.
    return sweep


def _check_tune_state(name: str, place: Place) -> None:
    """Refuse to go on with trials that have done a rung when Ray Tune's newest state does not tell of them."""
    if not any(key.endswith(f"/{RESULT_FILE}") for key in place.keys("trials")):
        return
    states = [key for key in place.keys(TUNE_FOLDER) if fnmatch(key, _TUNE_STATE)]
    if not states:
        raise InputError("resume", name, f"Ray Tune's state of it, {_TUNE_STATE}, is gone; its trials stay as they are")
    try:
        json.loads(place.get(newest := max(states)))
    except ValueError as error:
        allowed = f"Ray Tune's state of it, {newest}, is damaged ({error}); its trials stay as they are"
        raise InputError("resume", name, allowed) from None
