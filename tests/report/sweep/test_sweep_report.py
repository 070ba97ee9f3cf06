"""A sweep's report counts from its trials, and says and draws what it counted."""

from __future__ import annotations

import csv
import html
import io
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from distsens.errors import printable
from distsens.experiment import Experiment
from distsens.report.sweep import (
    RungState,
    SweepSummary,
    SweepView,
    TrialState,
    at_the_end,
    count,
    ranked,
    show_sweep,
    sweep_files,
    sweep_page,
    sweep_plates,
    sweep_sentences,
    trial_line,
)
from distsens.search import Choice, LogUniform, Space
from tests.report.nasty import FORMULAS

SPACE: Space = {"stabilize.weight": LogUniform(0.1, 10.0), "stabilize.layers": Choice((("auto",), ("network.conv*",)))}
CHAMPION: dict[str, Any] = {
    "trial": "t3",
    "number": 3,
    "values": {"stabilize.weight": 2.0, "stabilize.layers": ("auto",)},
    "run": "run-champion",
    "registered": "models:/m@champion",
    "test": {"images": 100.0, "clean_accuracy": 0.97, "fgsm_accuracy": 0.9, "pgd_accuracy": 0.8},
}


def trial(number: int, weight: float, *rungs: tuple[float, float], status: Any = "finished") -> TrialState:
    """A trial with clean and robust accuracy at each of its rungs, of which each costs ten times the one before."""
    states = {
        rung: RungState(2, clean, robust, robust, seconds=1.0, evaluations=10.0**rung)
        for rung, (clean, robust) in enumerate(rungs, start=1)
    }
    values = {"stabilize.weight": weight, "stabilize.layers": ("auto",)}
    failure = "the loss is not finite" if status == "failed" else None
    return TrialState(f"t{number}", number, values, status, failure, rungs=states)


@pytest.fixture
def trials() -> list[TrialState]:
    return [
        trial(0, 0.2, (0.9, 0.5), status="stopped"),
        trial(1, 0.5, (0.9, 0.6), (0.99, 0.7)),
        trial(2, 9.0, (0.1, 0.1), status="failed"),
        trial(3, 2.0, (0.9, 0.7), (0.98, 0.8)),
        trial(4, 1.0, (0.9, 0.65), (0.97, 0.75)),
    ]


def test_trials_rank_by_the_rung_that_they_did_and_by_their_score_there(trials: list[TrialState]) -> None:
    assert [one.number for one in ranked(trials)] == [3, 4, 1, 0]
    assert [one.number for one in at_the_end(trials)] == [3, 4, 1]


def test_the_front_and_the_cost_are_counted_from_the_trials(trials: list[TrialState]) -> None:
    outcome = count(trials, SPACE)
    assert [one.number for one in outcome.front] == [3, 1]
    assert outcome.hypervolume == pytest.approx(0.98 * 0.8 + 0.01 * 0.7)
    assert outcome.evaluations == 5 * 10 + 3 * 100
    assert outcome.to_the_end == 4 * 100 + 10, "the trial that failed would not have gone to any end"
    assert outcome.saved == pytest.approx(60 / 410)
    assert outcome.importance_rung == 1
    assert next(iter(outcome.importance)) == "stabilize.weight"


def test_the_line_of_a_trial_that_is_to_be_tried_again_says_so() -> None:
    one = trial(0, 1.0, status="failed")
    assert trial_line(one, 2).endswith("failed: the loss is not finite")
    one.failure, one.passing = "the storage answers 503", True
    assert trial_line(one, 2).endswith("failed: the storage answers 503 (--resume tries it again)")


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from(["finished", "stopped", "failed", "interrupted", "running"])),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.floats(1.0, 1e9), min_size=3, max_size=3),
)
def test_a_saving_is_never_negative_unless_more_was_spent_and_then_it_says_so_in_words(
    drawn: list[tuple[int, Any]], costs: list[float]
) -> None:
    """Each trial against itself: those that were ended early save the last rung, and all pay for the others."""
    trials = []
    for number, (rungs, status) in enumerate(drawn):
        done = 3 if status == "finished" else min(rungs, 2)
        one = trial(number, 1.0, *[(0.9, 0.5)] * done, status=status)
        for rung, state in one.rungs.items():
            state.evaluations = costs[rung - 1]
        trials.append(one)
    outcome = count(trials, SPACE)
    statuses = [one.status for one in trials]
    if "finished" not in statuses:
        assert (outcome.saved, outcome.saving) == (None, None)
        return
    extra = sum(sum(costs[:2]) for one in trials if one.status == "finished")
    spared = sum(costs[2] - one.evaluations for one in trials if one.status == "stopped")
    assert outcome.saved is not None
    assert outcome.saved * (outcome.to_the_end or 0.0) == pytest.approx(spared - extra, abs=1e-6 * sum(costs))
    said = f"{outcome.saving}"
    assert "-" not in said
    assert ("more" in said) == (outcome.saved < -0.005) or abs(outcome.saved) == pytest.approx(0.005)
    assert ("saved" in said) == (outcome.saved > 0.005) or abs(outcome.saved) == pytest.approx(0.005)


@pytest.mark.parametrize("costs", [[1.1] * 7, [0.1, 0.2, 0.3]])
def test_where_all_trials_go_to_the_end_at_once_nothing_is_saved_or_lost(costs: list[float]) -> None:
    trials = [trial(number, 1.0, (0.9, 0.5)) for number in range(len(costs))]
    for one, cost in zip(trials, costs, strict=True):
        one.rungs[1].evaluations = cost
    assert (count(trials, SPACE).saved, count(trials, SPACE).saving) == (0.0, None)


def test_a_trial_is_the_same_after_it_was_written_down(trials: list[TrialState]) -> None:
    for one in trials:
        assert TrialState.from_dict(one.to_dict()) == one


def test_a_sweep_of_failures_alone_has_nothing_to_show() -> None:
    outcome = count([trial(0, 1.0, status="failed")], SPACE)
    assert (outcome.best, outcome.front, outcome.hypervolume, outcome.saved) == ((), (), 0.0, None)


def test_sentences_hold_the_numbers(trials: list[TrialState]) -> None:
    said = " ".join(sweep_sentences(trials, count(trials, SPACE), CHAMPION))
    assert "5 trials: 3 went to the end, 1 were stopped early, 1 failed." in said
    assert "weight 2, layers auto. Trained anew, it has 97.00% clean and 80.00% robust accuracy on 100 test" in said
    assert "The front has 2 trials, from 98.00% clean and 80.00% robust to 99.00% and 70.00%" in said
    assert "15% saved" in said
    outcome = count(trials, SPACE)
    share = outcome.importance["stabilize.weight"]
    assert f"weight explains {share:.0%} of the variance of the scores of the 4 trials that did rung 1" in said
    for shares in ({"stabilize.weight": 1.0}, {"stabilize.weight": 0.5, "stabilize.layers": 0.5}, {}):
        said = " ".join(sweep_sentences(trials, replace(outcome, importance=shares), CHAMPION))
        assert "explains" not in said
    assert "saved" not in " ".join(sweep_sentences(trials, replace(outcome, to_the_end=outcome.evaluations), CHAMPION))


def test_the_page_holds_every_trial_and_figure_and_asks_nothing_of_the_network(trials: list[TrialState]) -> None:
    outcome = count(trials, SPACE)
    plates = sweep_plates(trials, outcome, SPACE, 2, "t3")
    page = sweep_page("a <sweep>", "about", trials, outcome, plates, CHAMPION, {"sweep.trials": 5})
    assert "Sweep a &lt;sweep&gt;" in page
    assert [plate.name for plate in plates] == ["front", "space", "importance"]
    assert all(f'id="figure-{plate.name}"' in page for plate in plates)
    assert page.count("<tr><th scope='row'>") >= 5 + 1
    assert "failed: the loss is not finite" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert all(plate.png.startswith(b"\x89PNG") for plate in plates)


@pytest.mark.parametrize("fields", [1, 2, 3])
def test_any_number_of_fields_can_be_drawn(trials: list[TrialState], fields: int) -> None:
    space = {**SPACE, "stabilize.ratio": LogUniform(0.01, 1.0)}
    space = dict(list(space.items())[:fields])
    for one in trials:
        one.values = {field: {**one.values, "stabilize.ratio": 0.1}[field] for field in space}
    assert len(sweep_plates(trials, count(trials, space), space, 2, None)) == 3


def test_each_rung_that_a_trial_does_is_a_line_that_is_said_once(trials: list[TrialState]) -> None:
    output = io.StringIO()
    with SweepView(Console(file=output, width=200), total=5, rungs=2) as view:
        running = trial(0, 0.2, (0.9, 0.5), status="running")
        for _ in range(3):
            view.update([running], {"t0": "epoch 1"})
        for _ in range(2):
            view.update(trials, {})
    lines = output.getvalue().splitlines()
    assert lines[0].startswith("trial   0  weight 0.2  layers auto  rung 1/2  clean 90.0%  robust 50.0%  goes on")
    assert sum(line.startswith("trial   0") for line in lines) == 2
    assert len(lines) == 6
    assert "failed: the loss is not finite" in lines[3]


def test_a_terminal_shows_the_trials_live_with_the_best_the_front_and_the_time_left(trials: list[TrialState]) -> None:
    output = io.StringIO()
    with SweepView(Console(file=output, width=200, height=40, force_terminal=True), total=8, rungs=2) as view:
        running = trial(5, 3.0, (0.9, 0.6), status="running")
        view.update([trials[0], running], {"t5": "epoch 2, 7/9"})
        view.update([*trials, running], {"t5": "epoch 2, 8/9"})
    shown = output.getvalue()
    assert "epoch 2, 8/9" in shown
    assert "5 of 8 trials done; best so far 3: 98.0% clean, 80.0% robust; front 98.0%/80.0% 99.0%/70.0%" in shown
    assert re.search(r"front \S+ \S+ +\d+ s left", shown)


def test_the_final_table_marks_the_front_and_the_champion(trials: list[TrialState]) -> None:
    outcome = count(trials, SPACE)
    trials[3].autoattack = 0.75
    summary = SweepSummary(
        status="finished",
        message=None,
        sweep="sweep-1",
        storage="file:///runs/sweep-1",
        mlflow_uri="sqlite:///x",
        mlflow_run_id="abc",
        search={},
        settings={},
        trials=[one.to_dict() for one in trials],
        best="t3",
        front=["t3", "t1"],
        hypervolume=outcome.hypervolume,
        importance=outcome.importance,
        cost={},
        champion=CHAMPION,
        at_a_time=2,
        seconds=10.0,
    )
    output = io.StringIO()
    show_sweep(Console(file=output, width=160), summary, outcome)
    said = output.getvalue()
    assert "finished * champion" in said
    assert "75.0%" in said
    assert "350 gradient evaluations; 410 had all trials gone to the end: 15% saved" in said
    assert "champion: trial 3, run run-champion, 97.00% clean and 80.00% robust on 100 test" in said
    assert set(summary.to_dict()["trials"][0]["rungs"][1]) == {
        "epochs",
        "clean",
        "robust",
        "score",
        "seconds",
        "evaluations",
    }


@pytest.mark.parametrize("text", [r"$\frac{$", "\x1b[31mred", "a\rb\nc\td", "\udcff", "<b>", FORMULAS[0]])
def test_the_files_of_a_sweep_take_every_text(text: str) -> None:
    layers = Choice(((text,), ("auto",)))
    space = {**SPACE, "stabilize.layers": layers}
    plan = SimpleNamespace(
        space=space,
        rungs=2,
        base=Experiment(),
        sweep=SimpleNamespace(searcher="random", scheduler="none"),
        flat=lambda: {"search.stabilize.layers": str(layers)},
    )
    done, failed = trial(0, 0.5, (0.9, 0.6), (0.99, 0.7)), trial(1, 9.0, (0.1, 0.1), status="failed")
    done.values["stabilize.layers"] = failed.values["stabilize.layers"] = failed.failure = text
    champion = {**CHAMPION, "values": done.values}
    files = sweep_files(text, plan, [done, failed], count([done, failed], space), champion)  # type: ignore[arg-type]
    (row,) = csv.DictReader(io.StringIO(files["front.csv"].decode()))
    assert row["stabilize.layers"].removeprefix("'") == printable(text)
    assert row["stabilize.layers"][0] not in "=+-@"
    assert (row["number"], row["robust_accuracy"], row["status"]) == ("0", "0.7", "finished")
    assert pd.read_parquet(io.BytesIO(files["trials.parquet"]))["failure"].tolist()[1] == printable(text)
    assert all(one.isprintable() for one in files["findings.txt"].decode().split("\n"))
    assert html.escape(printable(f"failed: {text}")) in files["report.html"].decode()
