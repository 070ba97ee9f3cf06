"""A log never stays silent for long while something is done, whoever does it."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from rich.console import Console

from distsens.report import EvaluationView, PlainView, checking, pulse
from distsens.report.analysis import AnalysisView
from distsens.report.sweep import RungState, SweepView, TrialState
from distsens.training import Progress


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "SECONDS", 0.03)


def wait_for(file: io.StringIO, words: str) -> None:
    deadline = time.monotonic() + 10.0
    while not re.search(rf"^{words}  \(\d+ s\)$", file.getvalue(), flags=re.MULTILINE):
        assert time.monotonic() < deadline, file.getvalue()
        time.sleep(0.005)


def training(console: Console) -> AbstractContextManager[Any]:
    return PlainView(console, epochs=3)


def a_step(view: PlainView) -> None:
    view.step(Progress(2, 5, 20, images_per_second=1234.5, losses={"ce": 1.5}))


def starts(_: Any) -> None:
    """Nothing happens yet."""


def counted(view: AnalysisView) -> None:
    def results() -> Iterator[int | None]:
        yield 1
        yield None

    assert list(view.count("measuring", results(), 7)) == [1]


def sweeps(view: SweepView) -> None:
    done = TrialState("a", 0, {"seed": 0}, status="finished", rungs={1: RungState(1, 0.9, 0.5, 0.5)})
    view.update([done, TrialState("b", 1, {"seed": 1})], {"b": "epoch 2, 5/20"})


@pytest.mark.parametrize(
    ("open_view", "happens", "words"),
    [
        (training, starts, "starting"),
        (training, lambda view: view.doing("testing", "100 images"), "testing 100 images"),
        (training, a_step, "epoch 2  step 5 of 20  1,234 images/s  ce 1.500"),
        (EvaluationView, starts, "starting the examiners"),
        (EvaluationView, lambda view: view.begin(10, 2), "2 of 10 images"),
        (AnalysisView, starts, "starting the analysts"),
        (AnalysisView, lambda view: view.stage("writing the report", 1), "writing the report"),
        (AnalysisView, counted, "measuring: 1 of 7 parts"),
        (lambda console: SweepView(console, 16, 1), starts, "starting the trials"),
        (lambda console: SweepView(console, 16, 1), sweeps, "1 of 16 trials done; trial 1 epoch 2, 5/20"),
        (lambda console: SweepView(console, 16, 1), lambda view: view.doing("trial 3: 5 of 9 images judged"),
         "trial 3: 5 of 9 images judged"),
        (checking, starts, "checking"),
        (checking, lambda tell: tell("reading the images"), "reading the images"),
    ],
)  # fmt: skip
def test_every_job_says_what_it_is_at_though_nothing_comes_of_it_for_long(
    open_view: Callable[[Console], AbstractContextManager[Any]], happens: Callable[[Any], None], words: str
) -> None:
    file = io.StringIO()
    with open_view(Console(file=file, width=40)) as view:
        happens(view)
        wait_for(file, re.escape(words))
        wait_for(file, re.escape(words))
    ended = file.getvalue()
    time.sleep(0.1)
    assert file.getvalue() == ended, "nothing is said of what has ended"


def test_what_has_been_said_just_now_or_is_shown_on_a_terminal_is_not_said_again() -> None:
    file = io.StringIO()
    with pulse.Pulse(Console(file=file)) as log:
        log.doing("something")
        log.doing("")
        time.sleep(0.1)
    assert file.getvalue() == ""
    terminal = io.StringIO()
    with pulse.Pulse(Console(file=terminal, force_terminal=True)) as shown:
        shown.doing("something")
        time.sleep(0.1)
    assert terminal.getvalue() == ""


def test_a_log_that_goes_on_gets_no_further_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "SECONDS", 0.5)
    file = io.StringIO()
    with pulse.Pulse(Console(file=file)) as log:
        log.doing("something")
        for number in range(8):
            log.say(f"line {number}")
            time.sleep(0.02)
    assert file.getvalue().splitlines() == [f"line {number}" for number in range(8)]


def test_an_error_ends_it() -> None:
    with pytest.raises(ZeroDivisionError), pulse.Pulse(Console(file=io.StringIO())) as log:
        raise ZeroDivisionError
    assert log._thread is not None
    assert not log._thread.is_alive()
