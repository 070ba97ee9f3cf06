from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import forks
import psutil
import pytest
from mlflow.exceptions import MlflowException

from distsens.tracking import TrackedRun, is_store_error
from distsens.tracking.guardian import _end

if TYPE_CHECKING:
    from tests.tracking.conftest import Store


@dataclass(frozen=True)
class Driver:
    """A driver that waits to be killed, its run, its guardian and another child of it."""

    process: subprocess.Popen[str] | forks.Fork
    run_id: str
    guardian: psutil.Process
    child: psutil.Process


def guardian_of(pid: int, run_id: str) -> psutil.Process:
    found: list[psutil.Process] = []

    def is_there() -> bool:  # On a busy machine it is not for a moment.
        children = psutil.Process(pid).children()  # some of other tests may have ended and not been waited for
        found[:] = [one for one in children if one.status() != psutil.STATUS_ZOMBIE and run_id in one.cmdline()]
        return bool(found)

    assert eventually(is_there)
    (guardian,) = found
    return guardian


@pytest.fixture
def driver(store: Store, start_driver: Callable[[str, str], subprocess.Popen[str] | forks.Fork]) -> Iterator[Driver]:
    process = start_driver("wait", store.uri)
    assert process.stdout is not None
    run_id, child = process.stdout.readline().split()
    driver = Driver(process, run_id, guardian_of(process.pid, run_id), psutil.Process(int(child)))
    yield driver
    process.kill()
    process.wait()
    process.stdout.close()
    with suppress(psutil.NoSuchProcess):
        driver.child.kill()


def has_gone(process: psutil.Process) -> bool:
    """An orphan may stay a zombie where nobody reaps."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def ignores(process: psutil.Process, number: int) -> bool:
    (mask,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(int(mask, 16) >> (number - 1) & 1)


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def kill_driver(driver: Driver) -> None:
    driver.process.kill()


def kill_process_group(driver: Driver) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        os.killpg(driver.process.pid, number)


@pytest.mark.parametrize("kill", [kill_driver, kill_process_group])
def test_the_run_of_a_driver_that_was_killed_becomes_killed(
    store: Store, driver: Driver, kill: Callable[[Driver], None]
):
    assert store.client.get_run(driver.run_id).info.status == "RUNNING"
    kill(driver)
    driver.process.wait()
    assert eventually(lambda: has_gone(driver.guardian))
    found = store.client.get_run(driver.run_id)
    assert found.info.status == "KILLED"
    assert found.info.end_time >= found.info.start_time
    assert found.data.tags["distsens.outcome"] == "the driver died without ending the run"


def test_the_guardian_outlives_signals_meant_for_the_driver(driver: Driver):
    assert eventually(lambda: ignores(driver.guardian, signal.SIGTERM)), "it has not started"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        driver.guardian.send_signal(number)
    assert not eventually(lambda: has_gone(driver.guardian), seconds=0.5)


def test_a_run_that_another_driver_reopened_is_left_to_it(store: Store, driver: Driver):
    run = TrackedRun.reopen(store.uri, driver.run_id)
    driver.process.kill()
    driver.process.wait()
    assert eventually(lambda: has_gone(driver.guardian))
    found = store.client.get_run(driver.run_id)
    run.finish("FINISHED")
    assert found.info.status == "RUNNING"
    assert "distsens.outcome" not in found.data.tags


def test_the_guardian_goes_when_the_run_ends(store: Store, run: TrackedRun):
    guardian = guardian_of(os.getpid(), run.run_id)
    run.finish("FINISHED")
    assert not guardian.is_running()
    assert store.client.get_run(run.run_id).info.status == "FINISHED"


def test_a_run_ends_well_even_if_its_guardian_was_killed(store: Store, run: TrackedRun):
    guardian_of(os.getpid(), run.run_id).kill()
    run.finish("FINISHED")
    assert store.client.get_run(run.run_id).info.status == "FINISHED"


def test_a_waiting_guardian_is_small_and_shows_no_address(store: Store, run: TrackedRun):
    guardian = guardian_of(os.getpid(), run.run_id)
    assert eventually(lambda: ignores(guardian, signal.SIGTERM) and guardian.status() == psutil.STATUS_SLEEPING)
    assert guardian.memory_info().rss < 30e6, "it has imported something heavy"
    assert store.uri not in " ".join(guardian.cmdline())


def test_a_run_whose_store_fails_at_its_end_is_ended_when_the_store_is_back(store: Store, run: TrackedRun):
    guardian = guardian_of(os.getpid(), run.run_id)
    file = store.uri.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")  # nobody else can read or write
        with pytest.raises(MlflowException) as caught:
            run.finish("FAILED", "diverged")
        assert is_store_error(caught.value)
        assert guardian.is_running()
    assert eventually(lambda: has_gone(guardian), seconds=60)
    found = store.client.get_run(run.run_id)
    assert (found.info.status, found.data.tags["distsens.outcome"]) == ("FAILED", "diverged")


def test_a_store_that_was_moved_meanwhile_is_not_made_anew_in_its_old_place(tmp_path: Path):
    with pytest.raises(sqlite3.OperationalError):
        _end(f"sqlite:///{tmp_path}/runs/mlflow.db", "a run", "a driver", "KILLED", None, time.time())
    assert not list(tmp_path.iterdir())
