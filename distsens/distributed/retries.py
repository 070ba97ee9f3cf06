"""Which failures of a training's workers a restart can mend, now or when the work is resumed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http.client import HTTPException

import ray
import torch
import torch.distributed as dist
from ray.train import TrainingFailedError, WorkerGroupError

from distsens.distributed.patience import MachinesLostError
from distsens.distributed.ray_internals import (
    DefaultFailurePolicy,
    FailureDecision,
    RayTrainError,
    TrainerWith,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
    error_of_worker,
)
from distsens.errors import InputError, UnreachableError
from distsens.storage import CheckpointError

_OF_A_LOST_WORKER = (ray.exceptions.RayActorError, WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)
# What another machine, or a later moment, may not say again: of the network, the storage, memory, a device.
_OF_ITS_PLACE = (
    OSError,
    HTTPException,
    MemoryError,
    torch.OutOfMemoryError,
    torch.AcceleratorError,
    dist.DistError,
    ray.exceptions.RayError,
    RayTrainError,
    CheckpointError,
    MachinesLostError,
    UnreachableError,
)
# What libraries say of the same as mere RuntimeErrors, the other workers among them when one has gone.
_OF_ITS_PLACE_IN_WORDS = re.compile(
    r"connection|gloo|nccl|cuda|cublas|cudnn|process ?group|peer|time(d |-|d-)?out"
    r"|out of memory|allocate memory|start new thread|no space left",
    re.IGNORECASE,
)


class FailurePolicy(DefaultFailurePolicy):
    """Ray Train's, but an error that would come again ends the training: a restart costs a minute to hear it anew.

    A lost worker, node or connection leads to a restart, up to ``max_failures`` times.
    """

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Whether there is to be a restart; asked once for each failure."""
        if isinstance(training_failed_error, WorkerGroupError) and would_come_again(
            training_failed_error.worker_failures
        ):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class Trainer(TrainerWith):
    """Ray Train's, with :class:`FailurePolicy`."""

    policy = FailurePolicy


def passes(error: BaseException) -> bool:
    """Whether what ended a training is of a place or a moment, so that it may go well another time."""
    if isinstance(error, WorkerGroupError):
        return not would_come_again(error.worker_failures)
    if isinstance(error, ray.exceptions.RayTaskError):
        return passes(error.cause)
    # What could not be read, for instance, is refused by the name of its field.
    return _of_its_place(error) or (isinstance(error, InputError) and _of_its_place(error.__cause__))


def would_come_again(failures: Mapping[int, BaseException]) -> bool:
    """Whether some worker's own Python code failed, and none was lost: where one was, the others' errors are of that.

    Parameters
    ----------
    failures : by rank, as Ray Train tells them.
    """
    errors = [error_of_worker(one) for one in failures.values()]
    if any(isinstance(error, _OF_A_LOST_WORKER) for error in errors):
        return False
    return any(not _of_its_place(error) for error in errors)


def _of_its_place(error: BaseException | None) -> bool:
    if isinstance(error, _OF_ITS_PLACE):
        return True
    return isinstance(error, RuntimeError) and bool(_OF_ITS_PLACE_IN_WORDS.search(str(error)))
