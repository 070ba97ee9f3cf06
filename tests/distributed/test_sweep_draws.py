"""Which trial a sweep runs next, and that an interrupted one goes on as it would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distsens.distributed.sweep_draws import Draws
from distsens.distributed.sweep_record import StoredSweep
from distsens.report.sweep import RungState, TrialState
from distsens.search import SweepPlan
from distsens.storage import open_place

SEARCH = {"stabilize.weight": {"loguniform": [0.1, 10]}, "attack.steps": {"choice": [1, 2, 5]}}


def go_on(folder: Path, settings: dict[str, Any], trials: int) -> list[dict[str, Any]]:
    """A session of a sweep that runs so many trials, each to its end; the values of all that it then knows."""
    plan = SweepPlan.parse({"search": SEARCH, "sweep": {"trials": 16, **settings}})
    stored = StoredSweep("sweep", open_place(str(folder)), {}, "")
    known = stored.trials()
    draws = Draws(plan, stored, known)
    assert draws.left == 16 - sum(not one.unfinished for one in known.values())
    for number in range(min(trials, draws.left)):
        state = draws.next()
        draws.call(str(number), state)
        assert draws.name(str(number)) == state.trial
        worth = 1 / (1 + state.values["stabilize.weight"])
        state.status, state.rungs = "finished", {1: RungState(6, 0.9, worth, worth)}
        stored.keep(state)
        draws.ended(str(number), {"score": worth, "robust_accuracy": worth, "clean_accuracy": 0.9})
    return [one.values for one in stored.trials().values()]


@pytest.mark.parametrize(
    "settings", [{"searcher": "random"}, {"searcher": "tpe"}, {"searcher": "tpe", "goal": "front"}]
)
def test_a_sweep_that_is_interrupted_draws_what_it_would_have_drawn(tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = go_on(tmp_path / "whole", settings, 16)
    for trials in (5, 7, 9):
        pieces = go_on(tmp_path / "pieces", settings, trials)
    assert pieces == whole
    assert go_on(tmp_path / "pieces", settings, 1) == whole, "there is none left"


def test_a_trial_is_written_down_before_it_begins_and_is_the_first_of_the_next_session(tmp_path: Path) -> None:
    plan = SweepPlan.parse({"search": SEARCH, "sweep": {"trials": 3}})
    stored = StoredSweep("sweep", open_place(str(tmp_path)), {}, "")
    first = Draws(plan, stored, {}).next()
    known = stored.trials()
    assert known == {"00000": first}
    draws = Draws(plan, stored, known)
    assert [draws.next().number for _ in range(3)] == [0, 1, 2]


def test_what_is_settled_at_a_rung_is_what_was_decided_before(tmp_path: Path) -> None:
    rungs = [{"training.epochs": 1}, {"training.epochs": 2}]
    plan = SweepPlan.parse({"search": SEARCH, "sweep": {"trials": 4, "scheduler": "asha", "rungs": rungs}})
    done = {1: RungState(score=0.5)}
    states = [
        TrialState("0", 0, {}, "stopped", rungs={1: RungState(score=0.1)}),
        TrialState(
            "1", 1, {}, "interrupted", rungs=done | {2: RungState(score=0.6)}
        ),  # perhaps it was just told to end
        TrialState("2", 2, {}, "interrupted", rungs=done | {2: RungState()}),
        TrialState("3", 3, {}, "finished", rungs=done | {2: RungState(score=0.7), 3: RungState(score=0.8)}),
    ]
    stored = StoredSweep("sweep", open_place(str(tmp_path)), {}, "")
    scores = Draws(plan, stored, {one.trial: one for one in states}).scores()
    assert scores == [{"0": 0.1, "1": 0.5, "2": 0.5, "3": 0.5}, {"3": 0.7}, {"3": 0.8}]
