"""What is said of a training that ended, and when it gives one up."""

from __future__ import annotations

import pytest
import ray
from ray.train import WorkerGroupError

from distsens.distributed import training
from distsens.errors import InputError
from distsens.experiment import Workers


def test_the_worker_that_failed_is_blamed_and_not_those_that_lost_it() -> None:
    failures = {
        0: RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4711"),
        1: RuntimeError("Traceback (most recent call last):\n  ...\nValueError: no such class\n"),
    }
    assert training.cause(WorkerGroupError("workers failed", failures)) == "worker 1: ValueError: no such class"
    assert training.cause(WorkerGroupError("workers failed", {0: failures[0]})).startswith("worker 0: [gloo/")


def test_rays_own_errors_are_said_by_their_first_line() -> None:
    assert training.cause(ray.exceptions.RayError("the node died\n\nwhat to do: ...")) == "Ray: the node died"


@pytest.mark.ray
def test_a_silent_training_is_given_up_only_when_the_cluster_has_long_been_too_small(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_SECONDS_OF_QUIET", 0.0)
    monkeypatch.setattr(training, "_SECONDS_FOR_A_LOST_MACHINE", 0.0)
    busy, lost = training._Quiet(Workers(num=2)), training._Quiet(Workers(num=3))
    for _ in range(3):
        busy.check()
    lost.check()
    with pytest.raises(InputError, match="the cluster has room for 2 workers"):
        lost.check()
    lost.ended()
    lost.check()
