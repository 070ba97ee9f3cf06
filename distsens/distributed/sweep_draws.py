"""Which trial a sweep runs next: those that an earlier session left unfinished, then new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distsens.distributed.sweep_record import StoredSweep
from distsens.report.sweep import TrialState
from distsens.search import Outcome, SweepPlan, draw


class Draws:
    """Hands out a sweep's trials to Ray Tune, and writes each new one down before it begins.

    What a later session needs to go on is in the sweep's own record; what Ray Tune keeps is never read.

    Parameters
    ----------
    trials : those known so far, by name; new ones join them.
    """

    def __init__(self, plan: SweepPlan, stored: StoredSweep, trials: dict[str, TrialState]) -> None:
        self._plan, self._stored, self._trials = plan, stored, trials
        self._unfinished = [one for one in trials.values() if one.unfinished]
        self._names: dict[str, str] = {}
        self._outcomes: dict[int, Outcome] = {}
        for state in trials.values():
            judged = state.judged
            if not state.unfinished and judged is not None and judged.score is not None:
                self._add(state, judged.score, judged.robust or 0.0, judged.clean or 0.0)

    @property
    def left(self) -> int:
        """How many trials are still to be run."""
        return self._plan.total - sum(not one.unfinished for one in self._trials.values())

    def next(self) -> TrialState:
        """The next trial."""
        if self._unfinished:
            state = self._unfinished.pop(0)
            state.status = "running"
        else:
            used = {one.number for one in self._trials.values()}
            number = next(number for number in range(self._plan.total) if number not in used)
            outcomes = [self._outcomes[one] for one in sorted(self._outcomes)]
            state = TrialState(f"{number:05d}", number, draw(self._plan, number, outcomes))
            self._trials[state.trial] = state
        self._stored.keep(state)
        return state

    def call(self, handle: str, state: TrialState) -> None:
        """Say by which handle Ray Tune knows a trial."""
        self._names[handle] = state.trial

    def name(self, handle: str) -> str:
        """Our name of the trial that Ray Tune knows by this handle."""
        return self._names[handle]

    def ended(self, handle: str, result: Mapping[str, Any]) -> None:
        """A trial has ended, and this is the last that it reported."""
        state = self._trials[self._names[handle]]
        self._add(state, result["score"], result["robust_accuracy"], result["clean_accuracy"])

    def scores(self) -> list[dict[str, float]]:
        """By rung, the scores of the trials, by name, of which it is settled that they go on from there or end."""
        found: list[dict[str, float]] = [{} for _ in range(self._plan.rungs)]
        for state in self._trials.values():
            for rung, one in state.rungs.items():
                if one.score is not None and not (state.unfinished and rung == state.rung):
                    found[rung - 1][state.trial] = one.score
        return found

    def _add(self, state: TrialState, score: float, robust: float, clean: float) -> None:
        worth = (robust, clean) if self._plan.sweep.goal == "front" else (score,)
        self._outcomes[state.number] = Outcome(dict(state.values), worth)
