"""A tiny process that ends a run whose driver died without a word.

Nobody can catch SIGKILL, so a run whose driver was killed would stay RUNNING for ever. The guardian holds the read end
of a pipe whose write end the driver alone holds: when the driver goes, however it goes, the pipe closes. The guardian
then sets the run KILLED, unless another driver has reopened it meanwhile.

It runs as a script, by its path: waiting, it has imported neither its package nor MLflow, and needs some 10 MB. In a
session of its own, neither Ctrl-C nor a signal to the driver's process group reaches it.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

DRIVER_TAG = "distsens.driver"
OUTCOME_TAG = "distsens.outcome"
SWEEP_TAG = "distsens.sweep"
_DONE = "done\n"
_PATIENCE_S = 900.0
_PAUSE_S = 5.0


class Guardian:
    """The driver's side: holds the pipe open until `dismiss`.

    Parameters
    ----------
    uri : absolute address of the store. It travels through the pipe, for it may hold a password.
    run_id : the run to end.
    driver : the value of the run's tag ``distsens.driver`` while this driver owns it.
    """

    def __init__(self, uri: str, run_id: str, driver: str) -> None:
        # `-P` keeps this folder out of the script's search path, where its modules would hide others of their names.
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, run_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"uri": uri, "run_id": run_id, "driver": driver}) + "\n")
        self._process.stdin.flush()

    def hand_over(self, status: str, message: str | None) -> None:
        """Let it end the run so, when the store answers again, unless another driver has reopened it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # It may have been killed.
            self._process.stdin.write(json.dumps({"status": status, "message": message}) + "\n")
            self._process.stdin.close()

    def dismiss(self) -> None:
        """Tell it that the run has ended, and wait until it has gone."""
        self._process.communicate(_DONE)


def _watch() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    charge = sys.stdin.readline()
    if not charge or (word := sys.stdin.readline()) == _DONE:
        return
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # It asks again itself.
    end = json.loads(word) if word else {"status": "KILLED", "message": "the driver died without ending the run"}
    ended_at, ended = time.time(), False
    while not ended:
        try:
            _end(**json.loads(charge), **end, ended_at=ended_at)
            ended = True
        except Exception:  # Whatever the store's trouble is, it may pass.
            if time.time() - ended_at > _PATIENCE_S:
                raise
            time.sleep(_PAUSE_S)


def _end(uri: str, run_id: str, driver: str, status: str, message: str | None, ended_at: float) -> None:
    from mlflow import MlflowClient
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    if url.get_backend_name() == "sqlite":
        _check_holds(Path(str(url.database)), run_id)
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    if run.info.status == "RUNNING" and run.data.tags.get(DRIVER_TAG) == driver:
        if message is not None:
            client.set_tag(run_id, OUTCOME_TAG, message)
        end_trials(client, run.info.experiment_id, run_id, int(ended_at * 1000))
        client.set_terminated(run_id, status, end_time=int(ended_at * 1000))


def _check_holds(file: Path, run_id: str) -> None:
    """Raise unless the file is a store with the run; read-only.

    It was moved, or another was put in its place: a client would make tables in what is there, or a new file, and keep
    that open when the right one is back.
    """
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as store:
        if store.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone() is None:
            raise LookupError(run_id)


def end_trials(client: MlflowClient, experiment_id: str, sweep: str, end_time: int | None = None) -> None:
    """Set the trials of a sweep that are still RUNNING to KILLED: they end with their sweep."""
    mine = f"tags.`{SWEEP_TAG}` = '{sweep}' and attributes.status = 'RUNNING'"
    for trial in client.search_runs([experiment_id], filter_string=mine):
        client.set_terminated(trial.info.run_id, "KILLED", end_time=end_time)


if __name__ == "__main__":
    _watch()
