"""Sweeps in storage: a folder each, with what is needed to resume and its trials. Ray Tune's files are never read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import Field

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
POINTER_FILE = "pointer.json"
"""From where a trial of a population would go on, in the trial's folder."""
_TRIAL_FILE = "trial.json"
_CHAMPION_FILE = "champion.json"
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
        """What earlier sessions knew of the trials, by name; one whose own file is lost, by what its rungs left."""
        keys = sorted(self.place.keys("trials"))
        found = {}
        for key in (key for key in keys if key.endswith(f"/{_TRIAL_FILE}")):
            with self._damaged(key):
                one = TrialState.from_dict(read_json(self.place, key))
                if key != f"trials/{one.trial}/{_TRIAL_FILE}":
                    raise ValueError(f"it is of trial {one.trial}")
            found[one.trial] = one
        for key in (key for key in keys if key.endswith(f"/{RESULT_FILE}")):
            with self._damaged(key):
                values = load_as(RungDocument, self.place.get(key)).values
            if (name := key.split("/")[1]) not in found:
                number = 1 + max((one.number for one in found.values()), default=-1)
                found[name] = TrialState(name, int(name) if name.isdecimal() else number, values, "interrupted")
        for key in (key for key in keys if key.endswith(f"/{POINTER_FILE}")):
            with self._damaged(key):
                load_as(Pointer, self.place.get(key))
        return found

    @contextmanager
    def _damaged(self, key: str) -> Iterator[None]:
        """Refuse a file that is not what it should be; nothing else of the sweep is touched."""
        try:
            yield
        except ValueError as error:
            allowed = f"its {key} is damaged ({error}); its trials stay as they are"
            raise InputError("resume", self.name, allowed) from None

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


class _Epoch(Document):
    epoch: int = Field(ge=0)
    metrics: dict[str, float]
    alarm: str | None


class RungDocument(Document):
    """What a rung that is done leaves, see `RESULT_FILE`: its searched values, its epochs, or why it failed."""

    values: dict[str, Any]
    history: list[_Epoch]
    failure: str | None


class Pointer(Document):
    """What `POINTER_FILE` holds: searched values, and the checkpoint of a training that they go on with."""

    values: dict[str, Any]
    url: str
    epoch: int = Field(ge=0)


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
    sweep = StoredSweep(place_name(place.url), place, recipe, known.mlflow_run_id)
    sweep.trials()  # Refused here, where nothing has been started yet.
    return sweep
