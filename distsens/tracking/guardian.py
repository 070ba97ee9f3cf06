"""A tiny process that ends a run whose driver died without a word.

Nobody can catch SIGKILL, so a run whose driver was killed would stay RUNNING for ever. The guardian holds the read end
of a pipe whose write end the driver alone holds: when the driver goes, however it goes, the pipe closes. The guardian
then sets the run KILLED, unless another driver has reopened it meanwhile.

It runs as a script, by its path: waiting, it has imported neither its package nor MLflow, and needs some 10 MB. In a
session of its own, neither Ctrl-C nor a signal to the driver's process group reaches it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

DRIVER_TAG = "distsens.driver"
OUTCOME_TAG = "distsens.outcome"
_DONE = "done\n"


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

    def dismiss(self) -> None:
        """Tell it that the run has ended, and wait until it has gone."""
        self._process.communicate(_DONE)


def _watch() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    charge = sys.stdin.readline()
    if charge and sys.stdin.readline() != _DONE:
        _end(**json.loads(charge), died_at=time.time())


def _end(uri: str, run_id: str, driver: str, died_at: float) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run = client.get_run(run_id)
    if run.info.status == "RUNNING" and run.data.tags.get(DRIVER_TAG) == driver:
        client.set_tag(run_id, OUTCOME_TAG, "the driver died without ending the run")
        client.set_terminated(run_id, "KILLED", end_time=int(died_at * 1000))


if __name__ == "__main__":
    _watch()
