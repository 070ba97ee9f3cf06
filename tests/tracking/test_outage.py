"""Stores that go away while a run is recorded: what is waited for, what is said, and that nothing is told twice."""

from __future__ import annotations

import http.server
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import forks
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from distsens.tracking import TrackedRun, is_store_error, outage
from distsens.tracking.outage import PatientClient
from distsens.tracking.store import StoreError

if TYPE_CHECKING:
    from tests.tracking.conftest import Store


@dataclass
class Server:
    """Answers like an MLflow that holds nothing; the first times it cannot."""

    refusals: int = 0
    asked: list[str] = field(default_factory=list)
    uri: str = ""


@contextmanager
def _serving(server: Server, port: int = 0) -> Iterator[None]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.asked.append(self.path.rpartition("/")[2])
            able = len(server.asked) > server.refusals
            self.send_response(200 if able else 503)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """The terminal is the test's."""

    found = http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer)
    server.uri = f"http://127.0.0.1:{found.server_port}"
    thread = threading.Thread(target=found.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        found.shutdown()
        found.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    with _serving(server):
        yield server


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes what it is asked and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "_PATIENCE_S", 4.0)
    monkeypatch.setattr(outage, "_PATIENCE_WHEN_LOST_S", 0.5)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


def seconds_until_given_up(ask: Callable[[], object]) -> float:
    began = time.monotonic()
    with pytest.raises(MlflowException) as caught:
        ask()
    assert is_store_error(caught.value)
    return time.monotonic() - began


@pytest.mark.parametrize("trouble", ["gone", "silent", "unable"])
def test_a_server_out_of_reach_is_waited_for_once_and_not_for_each_request(
    trouble: str, silent: str, server: Server
) -> None:
    server.refusals = 10**6
    uri = {"gone": "http://127.0.0.1:9", "silent": silent, "unable": server.uri}[trouble]
    client = PatientClient(MlflowClient(uri))
    assert 2.5 < seconds_until_given_up(client.search_experiments) < 5.0
    assert seconds_until_given_up(client.search_experiments) < 1.5, "the run is ended without waiting anew"


def test_a_server_that_is_back_in_time_is_answered_for_and_has_all_patience_again(server: Server) -> None:
    server.refusals = 2
    client = PatientClient(MlflowClient(server.uri))
    assert client.search_experiments() == []
    assert len(server.asked) == 3
    server.refusals = 5
    assert client.search_experiments() == []


def test_what_is_made_is_asked_for_once_unless_the_server_was_not_reached(server: Server) -> None:
    server.refusals = 10**6
    client = PatientClient(MlflowClient(server.uri))
    assert seconds_until_given_up(lambda: client.create_run("0")) < 1.5
    assert server.asked == ["create"], "else there might be two"
    assert seconds_until_given_up(lambda: PatientClient(MlflowClient("http://127.0.0.1:9")).create_run("0")) > 2.5


def test_a_driver_that_is_interrupted_while_a_server_hangs_does_not_wait_for_it_again(silent: str) -> None:
    client = PatientClient(MlflowClient(silent))
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            client.search_experiments()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert seconds_until_given_up(client.search_experiments) < 1.5


def test_what_the_user_says_of_mlflows_patience_wins(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    server.refusals = 10**6
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    assert seconds_until_given_up(PatientClient(MlflowClient(server.uri)).search_experiments) < 1.5
    assert len(server.asked) == 2


@pytest.fixture
def own_store(store: Store, tmp_path: Path) -> str:
    """A store that this test alone has."""
    shutil.copy(store.uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def new_run(uri: str) -> TrackedRun:
    return TrackedRun.create(uri, experiment="outage", name="a run", params={}, tags={}, artifact_root=None)


def ended(uri: str, run_id: str) -> tuple[str, str | None]:
    """How the run has ended, when its guardian has ended it; of the file that is there now."""
    deadline, found = time.monotonic() + 60, ("RUNNING", None)
    while found[0] == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.2)
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as store:
            found = store.execute(
                "SELECT status, tags.value FROM runs LEFT JOIN tags "
                "ON tags.run_uuid = runs.run_uuid AND tags.key = 'distsens.outcome' WHERE runs.run_uuid = ?",
                (run_id,),
            ).fetchone()
    return found


def test_a_store_that_was_taken_away_is_an_error_and_its_run_is_ended_when_it_is_back(
    own_store: str, tmp_path: Path
) -> None:
    file, kept = tmp_path / "mlflow.db", tmp_path / "kept.db"
    run = new_run(own_store)
    file.rename(kept)
    for log in (lambda: run.log_epoch(0, {"loss": 0.5}), lambda: run.log_result({"accuracy": 0.5})):
        with pytest.raises(StoreError, match=r"mlflow\.db is gone"):
            log()
    file.touch()
    with pytest.raises(MlflowException):
        run.finish("FAILED", "it was taken away")
    time.sleep(4.0)  # the guardian has looked at what is there now
    assert file.stat().st_size == 0, "nothing was made in its place"
    shutil.copy(kept, file)
    assert ended(own_store, run.run_id) == ("FAILED", "it was taken away")


def test_a_store_whose_disk_is_full_says_nothing_and_tells_nothing_twice(
    own_store: str, start_driver: Callable[[str, str], subprocess.Popen[str] | forks.Fork]
) -> None:
    driver = start_driver("full-disk", own_store)
    assert driver.stdout is not None
    run_id, *lines = driver.stdout.read().splitlines()
    assert driver.wait(timeout=60) == 0
    assert len(lines) == 2, "two errors, of an epoch and of the end, and nothing of MLflow's own"
    assert not [line for line in lines if not line.startswith("error: ")]
    assert ended(own_store, run_id) == ("FAILED", "the disk is full")
    before = MlflowClient(own_store).get_metric_history(run_id, "loss0")
    run = TrackedRun.reopen(own_store, run_id)
    for epoch in range(len(before) + 2):
        run.log_epoch(epoch, {f"loss{i}": 1.0 for i in range(200)})
    run.finish("FINISHED")
    for name in ("loss0", "loss199", "epoch"):
        steps = [one.step for one in MlflowClient(own_store).get_metric_history(run_id, name)]
        assert steps == list(range(len(before) + 2)), name


def test_an_epoch_of_which_a_part_was_written_is_completed_and_not_repeated(
    store: Store, run: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = {f"layer{number}": float(number) for number in range(2100)}
    real, calls = MlflowClient.log_batch, 0

    def fails_at_the_third(self: MlflowClient, *arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise MlflowException("the disk is full")
        return real(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", fails_at_the_third)
        with pytest.raises(MlflowException):
            run.log_epoch(0, metrics)
    run.finish("FAILED")
    again = TrackedRun.reopen(store.uri, run.run_id)
    again.log_epoch(0, {name: value + 1 for name, value in metrics.items()})
    again.finish("FINISHED")
    for name in ("layer0", "layer1500", "layer2099", "epoch"):
        assert len(store.client.get_metric_history(run.run_id, name)) == 1, name
