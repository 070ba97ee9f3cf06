"""A training whose MLflow server is killed: it ends in one line, and when the server is back nothing is told twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

pytestmark = [pytest.mark.ray, pytest.mark.drill]


@dataclass
class Server:
    """`mlflow server` with a database and artifacts in a folder, at the same port each time it is started."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> Path:
        return self.folder / "server.db"

    def start(self) -> None:
        words = ["server", "--port", str(self.port), "--workers", "1", "--backend-store-uri"]
        words += [f"sqlite:///{self.database}", "--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 90
        while not self._answers():
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.5)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            MlflowClient(self.uri).search_experiments(max_results=1)
        except Exception:
            return False
        return True


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder, port)
    server.start()
    yield server
    server.kill()


def test_a_training_whose_mlflow_server_is_killed_ends_in_one_line_and_is_resumed_without_a_repetition(
    job: Any, quick: list[str], server: Server
) -> None:
    summary = job.folder / "summary.json"
    # What the user says of MLflow's patience holds, which spares the test most of a minute.
    environment = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    process = job.start(*quick, "--tracking.uri", server.uri, "--summary", str(summary), **environment)
    process.wait_for("epoch   1")
    server.kill()
    assert process.end() == 1, process.output
    failed, hint = process.lines[-2:]
    assert failed == "failed: MLflow: [Errno 111] Connection refused"
    assert hint.startswith("resume with: ")
    assert process.output.count("Connection refused") == 1, process.output
    assert "Traceback" not in process.output
    assert "Retrying" not in process.output, "urllib3's word for it"
    before = json.loads(summary.read_text())
    assert (before["status"], before["message"]) == ("failed", failed.removeprefix("failed: "))

    server.start()
    client = MlflowClient(server.uri)
    deadline = time.monotonic() + 60
    while client.get_run(before["mlflow_run_id"]).info.status != "FAILED":  # its guardian sees to that
        assert time.monotonic() < deadline
        time.sleep(0.5)
    resumed = job.finish("--resume", before["run"])
    run = client.get_run(before["mlflow_run_id"])
    assert resumed["mlflow_run_id"] == run.info.run_id
    assert run.info.status == "FINISHED"
    with closing(sqlite3.connect(server.database)) as store:
        told = store.execute(
            "SELECT key, step, COUNT(*) FROM metrics WHERE key NOT LIKE 'system/%' GROUP BY key, step"
        ).fetchall()
    assert not [one for one in told if one[2] > 1]
    assert sorted(step for key, step, _ in told if key == "epoch") == list(range(resumed["epochs"] + 1))
