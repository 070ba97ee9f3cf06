"""Whatever fails at the end of a sweep, all else of it is done, and it is said in one line what was not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from distsens.distributed import sweep_closing
from distsens.distributed.champion import Searched
from distsens.distributed.sweep_closing import close_sweep
from distsens.distributed.sweep_record import StoredSweep
from distsens.distributed.sweep_recording import SweepRecorder
from distsens.report.sweep import RungState, SweepView, TrialState, count
from distsens.search import SweepPlan
from distsens.storage import open_place
from distsens.tracking import TrackedRun

PLAN = SweepPlan.parse({"training": {"epochs": 2}, "search": {"stabilize.weight": {"uniform": [0, 1]}}})


class Closing(SimpleNamespace):
    """A sweep of which one trial has finished and one still trains."""

    folder: Path
    tracked: TrackedRun
    stored: StoredSweep

    def close(self) -> tuple[str, str | None]:
        """Close it as one that has come to a good end."""
        output = StringIO()
        view = SweepView(Console(file=output), 2, 1)
        recorder = SweepRecorder(self.stored, PLAN, None, view, None)  # type: ignore[arg-type]
        recorder.trials = {one.trial: one for one in self.trials}
        checked: Any = None
        sweep = Searched(PLAN, checked, self.stored, self.tracked, view, 2)
        ended = close_sweep(sweep, recorder, count(recorder.in_order, PLAN.space), "finished", None)
        assert [one.status for one in recorder.in_order] == ["finished", "interrupted"]
        self.shown = output.getvalue()
        return ended

    @property
    def run(self) -> Any:
        return MlflowClient(self.tracked.uri).get_run(self.tracked.run_id)


@pytest.fixture
def closing(tmp_path: Path) -> Closing:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracked = TrackedRun.create(uri, experiment="e", name="sweep", params={}, tags={}, artifact_root=None)
    stored = StoredSweep("sweep", open_place(str(tmp_path / "sweep")), {}, tracked.run_id)
    rungs = {1: RungState(2, 0.9, 0.6, 0.6, 1.0, 10.0)}
    values = {"stabilize.weight": 0.5}
    trials = [TrialState("t0", 0, values, "finished", rungs=rungs), TrialState("t1", 1, values)]
    return Closing(folder=tmp_path, tracked=tracked, stored=stored, trials=trials)


def test_a_sweep_that_ends_well_leaves_its_report_in_both_places(closing: Closing) -> None:
    assert closing.close() == ("finished", None)
    assert (closing.folder / "sweep/report/report.html").exists()
    assert closing.run.info.status == "FINISHED"
    assert "hypervolume" in closing.run.data.metrics


def file_for_folder(path: Path) -> None:
    """What is to be written below cannot be."""
    if path.exists():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def no_figures(closing: Closing, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a label that cannot be set")

    monkeypatch.setattr(sweep_closing, "sweep_files", fail)


SPOILT: dict[str, tuple[Callable[..., None], str, bool]] = {
    "trials": (
        lambda closing, _: file_for_folder(closing.folder / "sweep/trials"),
        "the last state of the trials could not be kept: ",
        True,
    ),
    "figures": (no_figures, "the report could not be made: ValueError: a label that cannot be set", False),
    "storage": (
        lambda closing, _: file_for_folder(closing.folder / "sweep/report"),
        "the report could not be kept: ",
        False,
    ),
    "artifacts": (
        lambda closing, _: file_for_folder(closing.folder / "artifacts"),
        "MLflow did not take the report: ",
        True,
    ),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_fails_is_said_in_one_line_and_is_a_failure_and_all_else_is_done(
    closing: Closing, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    spoil, says, reported = SPOILT[spoilt]
    spoil(closing, monkeypatch)
    status, message = closing.close()
    assert status == "failed"
    assert message is not None
    assert message.startswith(says)
    assert "\n" not in message
    assert (closing.folder / "sweep/report/report.html").exists() == reported
    assert "hypervolume" in closing.run.data.metrics
    assert (closing.run.info.status, closing.run.data.tags["distsens.outcome"]) == ("FAILED", message)
    assert ("Traceback" in closing.shown) == (spoilt == "figures"), "of a fault of ours all is shown"


def test_an_mlflow_that_takes_nothing_more_leaves_the_report_in_the_storage(closing: Closing) -> None:
    MlflowClient(closing.tracked.uri).delete_run(closing.tracked.run_id)
    status, message = closing.close()
    assert status == "failed"
    assert "MLflow did not take the result: MLflow: " in str(message)
    assert (closing.folder / "sweep/report/report.html").exists()
    assert "Traceback" not in closing.shown


def test_a_store_that_is_gone_is_said_once_and_not_of_each_thing_that_it_did_not_take(closing: Closing) -> None:
    (closing.folder / "mlflow.db").rename(closing.folder / "kept.db")
    status, message = closing.close()
    (closing.folder / "kept.db").rename(closing.folder / "mlflow.db")
    assert status == "failed"
    assert str(message).count(" is gone") == 1
    assert "\n" not in str(message)
    assert "its guardian goes on trying" in str(message)
    assert (closing.folder / "sweep/report/report.html").exists()
    assert "Traceback" not in closing.shown
