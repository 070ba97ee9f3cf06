"""How a driver's work ended, in one line, and the end of its MLflow run, whatever has gone wrong."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import ray
import ray.train

from distsens.distributed.ray_internals import RayTrainError
from distsens.errors import InputError, UnavailableError, said
from distsens.redaction import without_secrets
from distsens.storage import CheckpointError
from distsens.tracking import TakenOverError, TrackedRun, is_store_error, reason

Status = Literal["finished", "failed", "interrupted"]
"""How a job's work ended, as its summary says."""

MLFLOW_STATUS: dict[Status, Literal["FINISHED", "FAILED", "KILLED"]] = {
    "finished": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
"""The same as MLflow calls it."""

# What the other workers say when one of them has gone.
_BROKEN_GROUP = re.compile(r"connection|gloo|nccl|process ?group|peer", re.IGNORECASE)


class EndedError(RuntimeError):
    """What a driver gives up for, in a line of its own."""


def explain(error: Exception, say: Callable[[str], None]) -> str:
    """One line for what ended a driver. Of a fault of ours ``say`` hears all, for it can only be mended where it is."""
    return without_secrets(_explained(error, say))


def _explained(error: Exception, say: Callable[[str], None]) -> str:
    if isinstance(error, (ray.train.TrainingFailedError, ray.exceptions.RayError)):
        return cause(error)
    if isinstance(error, (OSError, InputError, UnavailableError, CheckpointError, TakenOverError, EndedError)):
        return str(error)
    if is_store_error(error):
        return f"MLflow: {reason(error)}"
    for line in "".join(traceback.format_exception(error)).rstrip().split("\n"):
        say(line)
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


@contextmanager
def in_one_line(say: Callable[[str], None]) -> Iterator[None]:
    """What ends a driver that has no run yet, or no more, is a line and exit code 1."""
    try:
        yield
    except (InputError, UnavailableError):
        raise
    except Exception as error:
        raise UnavailableError(explain(error, say)) from error


@contextmanager
def ended_whatever_happens(tracked: TrackedRun, say: Callable[[str], None]) -> Iterator[None]:
    """What raises in the block ends the run in MLflow, unless it has ended before."""
    try:
        yield
    except KeyboardInterrupt:
        finish(tracked, "KILLED", "interrupted before it began", say)
        raise
    except Exception as error:
        finish(tracked, "FAILED", explain(error, lambda _: None), say)
        raise


def finish(
    tracked: TrackedRun,
    status: Literal["FINISHED", "FAILED", "KILLED"],
    message: str | None,
    say: Callable[[str], None],
) -> None:
    """End the MLflow run; a store that is down takes nothing else with it."""
    try:
        tracked.finish(status, message)
    except Exception as error:
        if not is_store_error(error):
            raise
        why = reason(error)
        told = "" if message is not None and why in message else f" ({why})"
        say(f"the MLflow run cannot be ended now{told}; its guardian goes on trying for some minutes")


def cause(error: BaseException) -> str:
    """One line for what ended the workers: a worker's own error, without Ray's wrapping.

    When one fails the others lose their connection to it, so theirs is not the cause unless there is no other.
    """
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    own = [rank for rank in sorted(failures) if not _BROKEN_GROUP.search(_words(failures[rank]))]
    if failures:
        rank = own[0] if own else min(failures)
        return f"worker {rank}: {_words(failures[rank])}"
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, InputError):
        return str(error.cause)
    lines = _lines(error)
    # Of its own accord Ray says first what happened, and then what can be done about it; of a task's error it says last
    # what happened.
    own_accord = isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)
    return f"Ray: {lines[0]}" if own_accord else lines[-1]


def _words(failure: BaseException) -> str:
    """What a worker's failure says, in a line: of one that comes as text the last line, in which the error is."""
    lines = _lines(failure)
    as_text = isinstance(failure, (ray.exceptions.RayError, RayTrainError)) or lines[0].startswith("Traceback")
    return lines[-1] if as_text else said(failure)


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [repr(error)]
