"""Where a run's things are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distsens.distributed.preflight import TRACKING_VARIABLE, storage_url, tracking_places
from distsens.experiment import Experiment
from distsens.storage import open_place

SUBMITTED = json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder and home, and none of the variables that choose places."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (TRACKING_VARIABLE, "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)


def places(path: str | None, uri: str | None = None) -> tuple[str, str | None]:
    experiment = Experiment.parse({"storage": {"path": path}, "tracking": {"uri": uri}})
    return tracking_places(experiment, open_place(storage_url(experiment)))


def test_runs_are_tracked_beside_them(tmp_path: Path) -> None:
    assert places(None) == (f"sqlite:///{tmp_path}/runs/mlflow.db", None)
    assert places("my runs") == (f"sqlite:///{tmp_path}/my runs/mlflow.db", None)


def test_runs_of_a_submitted_job_outlive_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", SUBMITTED)
    assert places(None) == (f"sqlite:///{tmp_path}/home/distsens/runs/mlflow.db", None)


def test_runs_in_a_bucket_are_tracked_in_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert places("s3://bucket/team") == (f"sqlite:///{tmp_path}/runs/mlflow.db", None)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", SUBMITTED)
    assert places("s3://bucket/team") == (f"sqlite:///{tmp_path}/home/distsens/runs/mlflow.db", None)


def test_a_server_keeps_its_artifacts_where_it_likes_and_a_database_in_the_storage() -> None:
    assert places("s3://bucket/team", "http://mlflow:5000") == ("http://mlflow:5000", None)
    assert places("s3://bucket/team", "postgresql://host/name") == (
        "postgresql://host/name",
        "s3://bucket/team/artifacts",
    )
