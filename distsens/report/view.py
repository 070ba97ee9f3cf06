"""A run on the terminal: a live view, or plain lines where there is no terminal, and the final table."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from distsens.console import print_line
from distsens.errors import printable
from distsens.report.console_table import print_table
from distsens.report.pulse import Pulse
from distsens.report.summary import Summary
from distsens.training import EpochRecord
from distsens.training import Progress as StepProgress


class View(Protocol):
    """Shows a run while it goes on; used as a context manager."""

    def __enter__(self) -> View:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and leave the terminal as it was."""

    def say(self, line: str) -> None:
        """Show a line that stays."""

    def doing(self, what: str, detail: str = "") -> None:
        """Show what is being done until something else is, and how far it is."""

    def step(self, progress: StepProgress) -> None:
        """Show where the epoch stands."""

    def epoch(self, record: EpochRecord, *, best: bool, new: bool = True) -> None:
        """Show an epoch's result; ``new`` is False for one that an earlier attempt finished."""


def open_view(console: Console, epochs: int) -> View:
    """A live view on a terminal, plain lines elsewhere."""
    return LiveView(console, epochs) if console.is_terminal else PlainView(console, epochs)


class PlainView:
    """A line an epoch, and in long ones where it stands, for logs."""

    def __init__(self, console: Console, epochs: int) -> None:
        self._pulse = Pulse(console)
        self._clock = _Clock(epochs)
        self._doing = ""
        self._pulse.doing("starting")

    def __enter__(self) -> View:
        self._pulse.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pulse.__exit__()

    def say(self, line: str) -> None:
        """Print it."""
        self._pulse.say(line)

    def doing(self, what: str, detail: str = "") -> None:
        """Print what is being done when it begins, and how far it is if it takes long."""
        self._pulse.doing(f"{what} {detail}".rstrip())
        if what != self._doing:
            self._doing = what
            self._pulse.begin()
            self.say(f"{what} ...")

    def step(self, progress: StepProgress) -> None:
        """Steps are too many for a log; now and then it is said where the epoch stands."""
        self._pulse.doing(f"epoch {progress.epoch}  step {progress.step} of {progress.steps}  {_pace(progress)}")

    def epoch(self, record: EpochRecord, *, best: bool, new: bool = True) -> None:
        """Print the epoch's line."""
        self.say(epoch_line(record, best=best) + (self._clock.left_text(record.epoch) if new else ""))


class LiveView:
    """Progress bars of the run and of the epoch, under the lines of the epochs done."""

    def __init__(self, console: Console, epochs: int) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._run = self._progress.add_task("epochs", total=epochs, note="")
        self._steps = self._progress.add_task("steps", total=None, note="", visible=False)
        self._live = Live(self._progress, console=console, refresh_per_second=4)
        self._robust = ""

    def __enter__(self) -> View:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def say(self, line: str) -> None:
        """Print it above the bars."""
        print_line(self._console, line)

    def doing(self, what: str, detail: str = "") -> None:
        """Show it beside the bar of the run, in place of the epoch's bar."""
        self._progress.update(self._run, note=printable(f"{what} {detail}".rstrip()))
        self._progress.update(self._steps, visible=False)

    def step(self, progress: StepProgress) -> None:
        """Move the epoch's bar."""
        self._progress.update(self._run, note=f"epoch {progress.epoch}{self._robust}")
        self._progress.update(
            self._steps,
            completed=progress.step,
            total=progress.steps,
            visible=True,
            note=_pace(progress),
        )

    def epoch(self, record: EpochRecord, *, best: bool, new: bool = True) -> None:  # noqa: ARG002
        """Print the epoch's line and move the bar of the run."""
        self.say(epoch_line(record, best=best))
        self._robust = f"  robust {record.robust_accuracy:.1%}"
        self._progress.update(self._run, completed=record.epoch, note=self._robust.strip())


def _pace(progress: StepProgress) -> str:
    losses = "  ".join(f"{name} {value:.3f}" for name, value in progress.losses.items())
    return f"{progress.images_per_second:,.0f} images/s  {losses}".rstrip()


def epoch_line(record: EpochRecord, *, best: bool) -> str:
    """An epoch on one line."""
    metrics = record.metrics
    line = (
        f"epoch {record.epoch:>3}  clean {metrics['validation/clean_accuracy']:>6.1%}  "
        f"robust {record.robust_accuracy:>6.1%}"
    )
    if "loss" in metrics:
        line += (
            f"  loss {metrics['loss']:.4f}  {metrics['throughput/images_per_second']:,.0f} images/s"
            f"  attack {metrics['throughput/attack_share']:.0%} of a step"
        )
        if metrics["schedule/sns_weight"] > 0:
            line += f"  sns {metrics['schedule/sns_weight']:.2g}"
    else:
        line += "  (untrained)"
    return line + ("  best" if best else "")


def show_summary(console: Console, summary: Summary) -> None:
    """The final table."""
    if summary.test is not None:
        print_line(
            console, f"{summary.run}: epoch {summary.best_epoch} on {summary.test['images']:.0f} test images", "bold"
        )
        accuracies = [f"{summary.test[key]:.2%}" for key in ("clean_accuracy", "fgsm_accuracy", "pgd_accuracy")]
        print_table(console, ("clean", "FGSM", _attack_name(summary)), [accuracies])
        if lost := summary.test.get("not_finite"):
            print_line(console, f"{lost:.0f} images have logits that are NaN or infinite, which counts as wrong")
    if summary.sensitivity:
        print_line(console, "sensitivity on validation, mean over neurons", "bold")
        best = f"best epoch ({summary.best_epoch})"
        columns = ("layer", *(name for m in ("absolute", "relative") for name in (f"{m}, epoch 1", best)))
        rows = [
            (layer, *(f"{values[m][when]:.4f}" for m in ("absolute", "relative") for when in ("first", "best")))
            for layer, values in summary.sensitivity.items()
        ]
        print_table(console, columns, rows)
    if summary.alarm is not None:
        print_line(console, f"alarm: {summary.alarm}")
    if summary.ended_early is not None:
        print_line(console, f"ended early at {summary.ended_early}")
    print_line(
        console,
        f"{summary.epochs} epochs, {summary.workers} workers, {summary.seconds:.0f} s"
        + (
            f", {summary.images_per_second:,.0f} images/s, "
            f"{summary.gradient_evaluations_per_second:,.0f} gradient evaluations/s, attack {summary.attack_share:.0%}"
            if summary.images_per_second
            else ""
        ),
    )
    print_line(console, f"MLflow run {summary.mlflow_run_id} in {summary.mlflow_uri}")
    if summary.published is not None:
        print_line(console, f"model {summary.published}")


def _attack_name(summary: Summary) -> str:
    attack = summary.experiment["test"]
    restarts = f" x {attack['restarts']}" if attack["restarts"] > 1 else ""
    return f"PGD-{attack['steps']}{restarts}"


class _Clock:
    """Time left, from the epochs that this call has seen."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._first: tuple[int, float] | None = None

    def left_text(self, epoch: int) -> str:
        now = time.monotonic()
        if self._first is None or epoch <= self._first[0]:
            self._first = (epoch, now)
            return ""
        left = (now - self._first[1]) / (epoch - self._first[0]) * (self._epochs - epoch)
        return f"  {left:.0f} s left" if epoch < self._epochs else ""
