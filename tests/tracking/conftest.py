"""A real SQLite store shared by the tests: creating its tables takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

import distsens
from distsens.tracking import TrackedRun


@dataclass(frozen=True)
class Store:
    """A store, and what the driver that created it wrote to its terminal."""

    uri: str
    folder: Path
    first_driver_output: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)


def _start_driver(action: str, uri: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(distsens.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("driver_process.py")), action, uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


@pytest.fixture
def start_driver() -> Callable[[str, str], subprocess.Popen[str]]:
    """Starts a separate process that drives a run; see driver_process.py."""
    return _start_driver


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("tracking")
    uri = f"sqlite:///{folder}/not/there/yet/mlflow.db"
    driver = _start_driver("whole-run", uri)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, output
    return Store(uri, folder, output)


@pytest.fixture
def new_run(store: Store) -> Iterator[Callable[[], TrackedRun]]:
    runs = []

    def create() -> TrackedRun:
        run = TrackedRun.create(store.uri, experiment="tests", name="a run", params={}, tags={}, artifact_root=None)
        runs.append(run)
        return run

    yield create
    for run in runs:
        run.finish("FINISHED")


@pytest.fixture
def run(new_run: Callable[[], TrackedRun]) -> TrackedRun:
    return new_run()
