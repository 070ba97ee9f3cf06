"""The record of a run, ``run.json`` in its folder: what was trained, and the MLflow run that tracks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distsens.errors import InputError
from distsens.storage.json_files import write_json
from distsens.storage.place import Place
from distsens.strict_json import Document, load_as, load_json

RUN_FILE = "run.json"
_FORMAT = 1


@dataclass(frozen=True)
class RunRecord:
    """The fields of a run's experiment, and the id of its MLflow run."""

    experiment: Mapping[str, Any]
    mlflow_run_id: str


class _Record(Document):
    """What ``run.json`` holds; the experiment is for `Experiment` to check."""

    experiment: dict[str, Any]
    mlflow_run_id: str


def write_run(place: Place, record: RunRecord) -> None:
    """Store the record in the run's place."""
    document = {"format": _FORMAT, "experiment": record.experiment, "mlflow_run_id": record.mlflow_run_id}
    write_json(place, RUN_FILE, document)


def read_run(place: Place) -> RunRecord:
    """Return the record of the run in a place.

    Raises
    ------
    FileNotFoundError
        There is none.
    InputError
        It is damaged, or of a format that this version does not read.
    """
    content = place.get(RUN_FILE)
    try:
        document = load_json(content)
        known = isinstance(document, dict) and document.get("format") == _FORMAT
        if not known or not _Record.model_fields.keys() <= document.keys():
            raise InputError("run", place.url, f"its {RUN_FILE} is not of this version's format ({_FORMAT})")
        record = load_as(_Record, document)
    except InputError:
        raise
    except ValueError as error:
        raise InputError("run", place.url, f"its {RUN_FILE} is damaged: {error}") from error
    return RunRecord(record.experiment, record.mlflow_run_id)
