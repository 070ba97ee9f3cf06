"""A lost worker is worth a restart; an error that its code would make again is not."""

from __future__ import annotations

from http.client import IncompleteRead
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ray.train import ControllerError, FailureConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus

from distsens.distributed.patience import MachinesLostError
from distsens.distributed.retries import FailurePolicy, passes
from distsens.errors import InputError, UnreachableError

LOST = ray.exceptions.RayActorError()
BROKEN = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4711")


def decisions(*failures: BaseException, times: int = 1) -> list[FailureDecision]:
    """What is decided about these failures, one for each rank, as Ray Train's controller finds them."""
    of_ray = (ray.exceptions.RayActorError, WorkerHealthCheckFailedError)
    statuses: dict[int, Any] = {
        rank: WorkerStatus(False, error if isinstance(error, of_ray) else UserExceptionWithTraceback(error, "..."))
        for rank, error in enumerate(failures)
    }
    failed = WorkerGroupPollStatus(statuses).get_worker_group_error()
    policy = FailurePolicy(FailureConfig(max_failures=2))
    return [policy.make_decision(failed) for _ in range(times)]


@pytest.mark.parametrize(
    "error",
    [
        KeyError("aux"),
        AssertionError("a batch of 15 is no multiple of 8"),
        AttributeError("'tuple' object has no attribute 'float'"),
        ValueError("Expected more than 1 value per channel when training, got input size torch.Size([1, 8])"),
        RuntimeError("view size is not compatible with input tensor's size and stride"),
        InputError("model", "tuple of 2", "it must return logits"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_would_come_again_is_not_retried(error: Exception) -> None:
    assert decisions(error) == [FailureDecision.RAISE]
    assert decisions(BROKEN, error) == [FailureDecision.RAISE]  # who lost it is no cause
    assert decisions(error, error) == [FailureDecision.RAISE]


@pytest.mark.parametrize(
    "error",
    [
        LOST,
        WorkerHealthCheckFailedError("a health check failed", LOST),
        BROKEN,
        dist.DistBackendError("NCCL error: remote process exited"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"),
        RuntimeError("can't start new thread"),
        MemoryError(),
        ConnectionResetError("reset by peer"),
        OSError("the storage cannot be reached"),
        UnreachableError("data.root", "s3://bucket/a.png", "could be read when the run began (503)"),
        ray.exceptions.ObjectLostError("00", None, ""),
        RuntimeError("Timed out waiting 1800000ms for recv operation to complete"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_place_or_a_moment_is_to_blame_for_is_retried_as_often_as_wanted(error: Exception) -> None:
    again, enough = FailureDecision.RETRY, FailureDecision.RAISE
    assert decisions(error, times=3) == [again, again, enough]
    assert decisions(BROKEN, error, times=3) == [again, again, enough]


def of_task(error: Exception) -> BaseException:
    return ray.exceptions.RayTaskError("read", "Traceback", error).as_instanceof_cause()


def refused(error: Exception) -> InputError:
    """What could not be read, by the name of its field."""
    refusal = InputError("data.root", "s3://bucket/a.png", "could be read when the run began")
    refusal.__cause__ = error
    return refusal


@pytest.mark.parametrize(
    ("error", "does"),
    [
        (ConnectionResetError("reset by peer"), True),
        (IncompleteRead(b""), True),
        (MemoryError(), True),
        (LOST, True),
        (ControllerError(RuntimeError("no placement group in time")), True),
        (WorkerGroupError("", {0: LOST, 1: KeyError("aux")}), True),
        (MachinesLostError("machines are lost"), True),
        (of_task(OSError("the storage answers 503")), True),
        (refused(OSError("the storage answers 503")), True),
        (KeyError("aux"), False),
        (WorkerGroupError("", {0: KeyError("aux"), 1: BROKEN}), False),
        (InputError("model", "tuple of 2", "it must return logits"), False),
        (of_task(InputError("data.root", "/x", "it is gone")), False),
        (refused(ValueError("no image")), False),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_a_place_or_a_moment_is_to_blame_for_passes(error: Exception, does: bool) -> None:
    assert passes(error) == does


def test_where_a_worker_was_lost_the_others_errors_are_of_that() -> None:
    assert decisions(LOST, KeyError("aux")) == [FailureDecision.RETRY]
