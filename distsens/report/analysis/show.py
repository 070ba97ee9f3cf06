"""What is seen of an analysis in the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from distsens.report.analysis.build import REPORT
from distsens.report.analysis.summary import AnalysisSummary

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 30.0


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

    def __enter__(self) -> AnalysisView:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def stage(self, what: str, total: int) -> None:
        """Something new begins, in so many parts."""
        self._progress.update(self._task, description=what, total=total, completed=0)
        if not self._console.is_terminal:
            self.say(f"{what} ...")

    def count(self, what: str, results: Iterator[T | None], total: int) -> Iterator[T]:
        """Pass results on as they come, and show how many of the ``total`` there are; None, for waiting, is dropped."""
        if not total:
            return
        self.stage(what, total)
        said, done = time.monotonic(), 0
        for result in results:
            if result is not None:
                done += 1
                self._progress.update(self._task, completed=done)
                yield result
            if not self._console.is_terminal and time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                self.say(f"{what}: {done} of {total}")


def show_analysis(console: Console, summary: AnalysisSummary) -> None:
    """The final table, the findings, and where the report is."""
    if summary.status != "finished":
        return
    table = Table()
    table.add_column("model")
    for name in ("clean", "attacked", "noise", "absolute", "relative"):
        table.add_column(name, justify="right")
    for model in summary.models:
        clean, attacked, *_ = accuracies = list(model["accuracy"].values())
        shares = [f"{one['value']:.1%}" for one in (clean, attacked, accuracies[-1])]
        table.add_row(Text(model["name"]), *shares, f"{model['absolute']:.4g}", f"{model['relative']:.4g}")
    console.print(table)
    for sentence in summary.findings:
        console.print(f"- {sentence}", highlight=False, markup=False, soft_wrap=True)
    place = summary.storage.removeprefix("file://")
    console.print(f"report {place}/{REPORT}", highlight=False, markup=False, soft_wrap=True)
