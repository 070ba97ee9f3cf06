"""Workers' logs: a JSON object a line, with the run and the rank, in the files that Ray keeps for each worker."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import ray

_NAME = "distsens.worker"

Log: TypeAlias = logging.LoggerAdapter[logging.Logger]


class JsonLines(logging.Formatter):
    """``{"time": ..., "level": ..., "message": ..., "run": ..., "rank": ..., ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        """A log record as one line."""
        document = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


class _WithFields(logging.LoggerAdapter[logging.Logger]):
    """Puts the fields of every call beside those that are known of the worker."""

    def process(self, message: str, arguments: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        known = dict(self.extra or {})
        return message, {**arguments, "extra": {"fields": known | dict(arguments.get("extra") or {})}}


def worker_log(run: str, rank: int) -> Log:
    """The log of a worker; ``extra`` of a call are further fields of its line.

    It goes to the worker's standard error, which Ray keeps as ``worker-*.err`` in its session's ``logs``.
    """
    logger = logging.getLogger(_NAME)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    where = {"node": ray.get_runtime_context().get_node_id()} if ray.is_initialized() else {}
    return _WithFields(logger, {"run": run, "rank": rank, **where})


@contextmanager
def logged(log: Log, task: str, **fields: Any) -> Iterator[None]:
    """A line when the block is done, with the seconds that it took, or one with the traceback when it fails."""
    began = time.monotonic()
    try:
        yield
    except Exception:
        log.exception(f"{task} failed", extra=fields)
        raise
    log.info(task, extra={**fields, "seconds": round(time.monotonic() - began, 3)})
