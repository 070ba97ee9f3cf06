"""A worker's log is JSON, a line an event, that says of which run and rank it is."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distsens.distributed.logs import Log, logged, worker_log


def log_here(run: str, rank: int) -> Log:
    """A worker's log on what is this test's standard error."""
    log = worker_log(run, rank)
    handler = log.logger.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.stream = sys.stderr
    return log


def test_each_line_is_json_with_the_run_the_rank_and_the_events_own_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log = log_here("run-1", 3)
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters()) | st.sampled_from(["\x1b[31m", "a\nb\r", "\u202e", "\udcff", "\0"]))
def test_whatever_a_name_holds_a_line_is_one_line_of_plain_letters(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    log_here("run-1", 3).info("read %s", name, extra={"file": name})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isascii()
    assert line.isprintable()
    assert (json.loads(line)["message"], json.loads(line)["file"]) == (f"read {name}", name)


def test_a_task_is_told_with_its_seconds_when_it_is_done_and_with_its_traceback_when_it_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = log_here("evaluation-1", 0)
    with logged(log, "judging", images=5):
        pass
    with pytest.raises(ValueError, match="no such thing"), logged(log, "judging", images=5):
        raise ValueError("no such thing")
    done, failed = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (done["message"], done["run"], done["rank"], done["images"]) == ("judging", "evaluation-1", 0, 5)
    assert 0 <= done["seconds"] < 1
    assert (failed["level"], failed["message"], failed["images"]) == ("ERROR", "judging failed", 5)
    assert "ValueError: no such thing" in failed["traceback"]
