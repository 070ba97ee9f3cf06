"""What is seen of an analysis in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from distsens.console import print_line
from distsens.report.analysis.build import REPORT
from distsens.report.analysis.summary import AnalysisSummary
from distsens.report.console_table import print_table
from distsens.report.pulse import Pulse

T = TypeVar("T")


class AnalysisView:
    """What the analysis is at and how far it is: live, or as lines now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting the analysts", total=None)
        self._pulse = Pulse(console)
        self._pulse.doing("starting the analysts")

    def __enter__(self) -> AnalysisView:
        self._progress.__enter__()
        self._pulse.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pulse.__exit__()
        self._progress.__exit__(kind, error, trace)

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._pulse.say(line)

    def stage(self, what: str, total: int) -> None:
        """Something new begins, in so many parts."""
        self._progress.update(self._task, description=what, total=total, completed=0)
        self._pulse.begin()
        self._pulse.doing(what)
        if not self._console.is_terminal:
            self.say(f"{what} ...")

    def count(self, what: str, results: Iterator[T | None], total: int) -> Iterator[T]:
        """Pass results on as they come, and show how many of the ``total`` there are; None, for waiting, is dropped."""
        if not total:
            return
        self.stage(what, total)
        done = 0
        for result in results:
            if result is not None:
                done += 1
                self._progress.update(self._task, completed=done)
                self._pulse.doing(f"{what}: {done} of {total} parts")
                yield result


def show_analysis(console: Console, summary: AnalysisSummary) -> None:
    """The final table, the findings, and where the report is."""
    if summary.status != "finished":
        return
    rows = []
    for model in summary.models:
        clean, attacked, *_ = accuracies = list(model["accuracy"].values())
        shares = [f"{one['value']:.1%}" for one in (clean, attacked, accuracies[-1])]
        rows.append((model["name"], *shares, f"{model['absolute']:.4g}", f"{model['relative']:.4g}"))
    print_table(console, ("model", "clean", "attacked", "noise", "absolute", "relative"), rows)
    for sentence in summary.findings:
        print_line(console, f"- {sentence}")
    place = summary.storage.removeprefix("file://")
    print_line(console, f"report {place}/{REPORT}")
