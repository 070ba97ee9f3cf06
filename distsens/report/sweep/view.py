"""A sweep on the terminal: a live table of its trials, or a line for each rung, and the final tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distsens.console import plain, print_line
from distsens.report.console_table import fitting_tables, print_table
from distsens.report.pulse import Pulse
from distsens.report.sweep.outcome import Outcome
from distsens.report.sweep.state import TrialState, ranked, short_names, shown
from distsens.report.sweep.summary import SweepSummary
from distsens.search import pareto_front

_SHOWN = 20


class SweepView:
    """Shows a sweep while it goes on; used as a context manager.

    Parameters
    ----------
    total : trials in all.
    rungs : trainings of a trial that reaches the end.
    """

    def __init__(self, console: Console, total: int, rungs: int) -> None:
        self._console, self._total, self._rungs = console, total, rungs
        self._began = time.monotonic()
        self._before: int | None = None
        self._said: set[tuple[str, int, str]] = set()
        self._pulse = Pulse(console)
        self._pulse.doing("starting the trials")
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> SweepView:
        if self._live is not None:
            self._live.__enter__()
        self._pulse.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pulse.__exit__()
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._pulse.say(line)

    def doing(self, what: str) -> None:
        """What is being done now that no trial trains, or how far it is; empty where somebody else shows it."""
        self._pulse.doing(what)
        if self._live is not None:
            self._live.update(plain(what))

    def update(self, trials: Sequence[TrialState], steps: Mapping[str, str]) -> None:
        """Show where the trials stand; ``steps`` says of those that train how far the epoch is."""
        done = sum(one.status != "running" for one in trials)
        if self._before is None:
            self._before = done  # of an earlier session
        running = [
            f"trial {one.number} {steps.get(one.trial, '')}".rstrip() for one in trials if one.status == "running"
        ]
        self._pulse.doing(f"{done} of {self._total} trials done; {'; '.join(running) or 'none trains now'}")
        if self._live is not None:
            self._live.update(Group(*self._tables(trials, steps), self._foot(trials, done)))
        for one in trials:
            news = (one.trial, one.rungs_done, one.status)
            if news not in self._said:
                self._said.add(news)
                if one.rungs_done > 0 or one.status != "running":
                    self.say(trial_line(one, self._rungs) + self._left(done))

    def _tables(self, trials: Sequence[TrialState], steps: Mapping[str, str]) -> list[Table]:
        fields = list(trials[0].values) if trials else []
        names = short_names(fields)
        columns = ("trial", *(names[field] for field in fields), "rung", "clean", "robust", "")
        rows = []
        running = [one for one in trials if one.status == "running"]
        others = [one for one in ranked(trials) if one.status != "running"]
        for one in (running + others)[:_SHOWN]:
            point = one.point
            rows.append(
                (
                    str(one.number),
                    *(shown(one.values[field]) for field in fields),
                    f"{one.rung}/{self._rungs}",
                    "" if point is None else f"{point.clean:.1%}",
                    "" if point is None else f"{point.robust:.1%}",
                    steps.get(one.trial, one.status) if one.status == "running" else one.status,
                )
            )
        return fitting_tables(columns, rows, self._console.width)

    def _foot(self, trials: Sequence[TrialState], done: int) -> Text:
        text = f"{done} of {self._total} trials done"
        best = ranked(trials)
        if best and (point := best[0].point) is not None:
            finished = [other for one in best if one.status == "finished" and (other := one.point) is not None]
            text += f"; best so far {best[0].number}: {point.clean:.1%} clean, {point.robust:.1%} robust"
            if finished:
                front = " ".join(f"{finished[i].clean:.1%}/{finished[i].robust:.1%}" for i in pareto_front(finished))
                text += f"; front {front}"
        return plain(text + self._left(done))

    def _left(self, done: int) -> str:
        """Time left, from the trials that this call has seen end."""
        seen = done - (self._before or 0)
        if seen <= 0 or done >= self._total:
            return ""
        return f"  {(time.monotonic() - self._began) / seen * (self._total - done):.0f} s left"


def trial_line(one: TrialState, rungs: int) -> str:
    """A trial on one line."""
    names = short_names(one.values)
    values = "  ".join(f"{names[field]} {shown(value)}" for field, value in one.values.items())
    line = f"trial {one.number:>3}  {values}  rung {one.rungs_done}/{rungs}"
    if (point := one.point) is not None and one.status != "failed":
        line += f"  clean {point.clean:.1%}  robust {point.robust:.1%}"
    end = "goes on" if one.status == "running" else one.status
    line += f"  {end}" + (f": {one.failure}" if one.failure else "")
    return f"{line} (--resume tries it again)" if one.passing else line


def show_sweep(console: Console, summary: SweepSummary, outcome: Outcome) -> None:
    """The final tables."""
    if outcome.best:
        print_line(console, f"{summary.sweep}: trials on validation, best first", "bold")
        best = outcome.best[:_SHOWN]
        print_table(console, *_final(best, {one.trial for one in outcome.front}, summary.champion))
    if outcome.front:
        print_line(
            console, f"* on the Pareto front of clean and robust accuracy; hypervolume {outcome.hypervolume:.4f}"
        )
    if outcome.importance:
        names = short_names(outcome.importance)
        shares = ", ".join(f"{names[field]} {share:.0%}" for field, share in outcome.importance.items())
        print_line(console, f"importance (share of the scores' variance): {shares}")
    if outcome.saving is not None:
        print_line(
            console,
            f"{outcome.evaluations:,.0f} gradient evaluations; {outcome.to_the_end:,.0f} had all trials gone to the "
            f"end: {outcome.saving}",
        )
    if summary.champion is not None:
        test = summary.champion["test"]
        print_line(
            console,
            f"champion: trial {summary.champion['number']}, run {summary.champion['run']}, "
            f"{test['clean_accuracy']:.2%} clean and {test['pgd_accuracy']:.2%} robust on {test['images']:.0f} test "
            f"images, {summary.champion['registered'] or 'not registered'}",
        )
    print_line(console, f"{summary.seconds:.0f} s; MLflow run {summary.mlflow_run_id} in {summary.mlflow_uri}")


def _final(
    trials: Sequence[TrialState], front: set[str], champion: Mapping[str, Any] | None
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows."""
    fields = list(trials[0].values)
    names = short_names(fields)
    judged = any(one.autoattack is not None for one in trials)
    columns = ["trial", *(names[f] for f in fields), "rung", "clean", "robust", *(["AutoAttack"] if judged else []), ""]
    rows = []
    for one in trials:
        point = one.point
        marks = ("*" if one.trial in front else "") + (
            " champion" if champion and champion["trial"] == one.trial else ""
        )
        rows.append(
            (
                str(one.number),
                *(shown(one.values[field]) for field in fields),
                str(one.rung),
                "" if point is None else f"{point.clean:.2%}",
                "" if point is None else f"{point.robust:.2%}",
                *([("" if one.autoattack is None else f"{one.autoattack:.1%}")] if judged else []),
                f"{one.status} {marks}".strip(),
            )
        )
    return columns, rows
