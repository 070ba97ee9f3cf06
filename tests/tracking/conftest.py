"""A real SQLite store shared by the tests: creating its tables takes seconds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import forks
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


def _start_driver(action: str, uri: str, **variables: str) -> subprocess.Popen[str] | forks.Fork:
    environment = {**os.environ, **variables, "PYTHONPATH": str(Path(distsens.__file__).parents[1])}
    words = [str(Path(__file__).with_name("driver_process.py")), action, uri]
    return forks.start(words, env=environment, cwd=Path.cwd())


@pytest.fixture
def start_driver(forked: dict[str, str]) -> Callable[[str, str], subprocess.Popen[str] | forks.Fork]:
    """Starts a separate process that drives a run; see driver_process.py."""
    return partial(_start_driver, **forked)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("tracking")
    uri = f"sqlite:///{folder}/not/there/yet/mlflow.db"
    driver = _start_driver("whole-run", uri)
    assert driver.stdout is not None
    output = driver.stdout.read()
    assert driver.wait(timeout=120) == 0, output
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
