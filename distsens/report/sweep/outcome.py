"""What the trials of a sweep say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose

from distsens.report.sweep.state import TrialState, at_the_end, ranked
from distsens.search import Space, hypervolume, importance, pareto_front


@dataclass(frozen=True)
class Outcome:
    """Counted from the trials.

    best : first. front : by rising clean accuracy. importance : by field, see ``distsens.search.importance``.
    importance_rung : where its scores were taken.
    evaluations, seconds : of training, all trials.
    to_the_end : the evaluations had nothing been ended early: of each trial that finished or was stopped those of the
        last rung alone, on average over those that did it, and of any other what it has taken. None before one did.
    """

    best: tuple[TrialState, ...]
    front: tuple[TrialState, ...]
    hypervolume: float
    importance: dict[str, float]
    importance_rung: int
    evaluations: float
    seconds: float
    to_the_end: float | None

    @property
    def saved(self) -> float | None:
        """Part of ``to_the_end`` that ending trials early has saved; negative where the rungs took more than that."""
        if not self.to_the_end:
            return None
        return 0.0 if isclose(self.evaluations, self.to_the_end) else 1.0 - self.evaluations / self.to_the_end

    @property
    def saving(self) -> str | None:
        """The same in words; None where there were no rungs, or nothing to speak of was saved or lost."""
        percents = round(100 * (self.saved or 0.0))
        if not percents or not any(one.rungs_done > 1 for one in self.best):
            return None
        return f"{percents}% saved" if percents > 0 else f"{-percents}% more, by rungs that ended too few trials"


def count(trials: Sequence[TrialState], space: Space) -> Outcome:
    """Count what the trials say, so far or at the end."""
    finished = at_the_end(trials)
    points = [point for one in finished if (point := one.point) is not None]
    rung, scores = _widest_rung(trials)
    last = [one.rungs[one.rung].evaluations for one in finished]
    ended = sum(one.status in ("finished", "stopped") for one in trials)
    others = sum(one.evaluations for one in trials if one.status not in ("finished", "stopped"))
    return Outcome(
        best=tuple(ranked(trials)),
        front=tuple(finished[position] for position in pareto_front(points)),
        hypervolume=hypervolume(points),
        importance=importance(space, scores),
        importance_rung=rung,
        evaluations=sum(one.evaluations for one in trials),
        seconds=sum(one.seconds for one in trials),
        to_the_end=others + ended * sum(last) / len(last) if last else None,
    )


def _widest_rung(trials: Sequence[TrialState]) -> tuple[int, list[tuple[dict[str, object], float]]]:
    """The highest of the rungs that most trials did, and the trials' values and scores there: judged alike."""
    done = [(number, one) for one in trials if one.status != "failed" for number in one.rungs]
    scored = [(number, one) for number, one in done if one.rungs[number].score is not None]
    counts = Counter(number for number, _ in scored)
    if not counts:
        return 0, []
    rung = max(counts, key=lambda number: (counts[number], number))
    return rung, [
        (one.values, score)
        for number, one in scored
        if number == rung and (score := one.rungs[number].score) is not None
    ]
