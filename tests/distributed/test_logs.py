"""A worker's log is JSON, a line an event, that says of which run and rank it is."""

from __future__ import annotations

import json
import sys

import pytest

from distsens.distributed.logs import worker_log


def test_each_line_is_json_with_the_run_the_rank_and_the_events_own_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log = worker_log("run-1", 3)
    handler = log.logger.handlers[0]
    assert hasattr(handler, "setStream")
    handler.setStream(sys.stderr)
    log.info("epoch", extra={"epoch": 2, "validation/robust_accuracy": 0.5})
    try:
        raise ValueError("no such thing")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("time")
    assert first == {
        "level": "INFO",
        "message": "epoch",
        "run": "run-1",
        "rank": 3,
        "epoch": 2,
        "validation/robust_accuracy": 0.5,
    }
    assert (second["level"], second["run"], second["rank"]) == ("ERROR", "run-1", 3)
    assert "ValueError: no such thing" in second["traceback"]
