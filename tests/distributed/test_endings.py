"""One line for whatever ended a driver's work."""

from __future__ import annotations

import pytest
import ray
from ray.train import WorkerGroupError

from distsens.distributed.endings import cause, explain, in_one_line
from distsens.errors import InputError, UnavailableError


def test_the_worker_that_failed_is_blamed_and_not_those_that_lost_it() -> None:
    failures = {
        0: RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4711"),
        1: RuntimeError("Traceback (most recent call last):\n  ...\nValueError: no such class\n"),
    }
    assert cause(WorkerGroupError("workers failed", failures)) == "worker 1: ValueError: no such class"
    assert cause(WorkerGroupError("workers failed", {0: failures[0]})).startswith("worker 0: [gloo/")
    own = {1: KeyError("aux")}  # without its traceback, as it comes from another process
    assert cause(WorkerGroupError("workers failed", failures | own)) == "worker 1: KeyError: 'aux'"
    lines = {0: ValueError("weights do not fit:\n\tmissing conv1")}
    assert cause(WorkerGroupError("workers failed", lines)) == "worker 0: weights do not fit: missing conv1"


def test_rays_own_errors_are_said_by_their_first_line() -> None:
    assert cause(ray.exceptions.RayError("the node died\n\nwhat to do: ...")) == "Ray: the node died"


@pytest.mark.ray
def test_of_a_tasks_error_it_is_said_what_happened_in_the_task(local_ray: None) -> None:
    def fail(error: Exception) -> None:
        raise error

    def ended_by(error: Exception) -> str:
        with pytest.raises(ray.exceptions.RayTaskError) as raised:
            ray.get(ray.remote(fail).remote(error))
        return cause(raised.value)

    assert ended_by(ValueError("no such class")) == "ValueError: no such class"
    assert ended_by(InputError("data.root", "/x", "it is gone")) == str(InputError("data.root", "/x", "it is gone"))


def test_a_fault_of_ours_is_shown_whole_and_no_other() -> None:
    said: list[str] = []
    assert explain(InputError("seed", -1, "0 or more"), said.append) == "seed: got -1; 0 or more"
    assert explain(OSError("the disk is full"), said.append) == "the disk is full"
    assert said == []
    with pytest.raises(KeyError) as raised:
        raise KeyError("layer")
    assert explain(raised.value, said.append) == "KeyError: 'layer'"
    assert said[0].startswith("Traceback")
    assert "test_a_fault_of_ours" in said[1]
    assert not any("\n" in line for line in said)


def test_what_ends_a_driver_without_a_run_is_one_line() -> None:
    said: list[str] = []
    with pytest.raises(UnavailableError, match=r"^the disk is full$"), in_one_line(said.append):
        raise OSError("the disk is full")
    with pytest.raises(InputError), in_one_line(said.append):
        raise InputError("seed", -1, "0 or more")
    with pytest.raises(KeyboardInterrupt), in_one_line(said.append):
        raise KeyboardInterrupt
    assert said == []
