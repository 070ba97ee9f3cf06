"""What the driver writes down of trials that nobody has told of, because it or they were killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from distsens.distributed.sweep_events import Began, GaveUp, RungEnded, TrialEvent
from distsens.distributed.sweep_hooks import DIED
from distsens.distributed.sweep_record import StoredSweep, find_sweep
from distsens.distributed.sweep_recording import SweepRecorder, TooManyFailedError
from distsens.distributed.trial import RungResult, TrialKit, last_training
from distsens.errors import InputError
from distsens.report.sweep import SweepView, TrialState
from distsens.search import FAILED, SweepPlan
from distsens.storage import open_place
from distsens.tracking import TrackedRun
from distsens.training import EpochRecord

RECIPE: dict[str, Any] = {
    "training": {"epochs": 6},
    "search": {"stabilize.weight": {"uniform": [0, 1]}},
    "sweep": {"max_failed": 1},
}


@dataclass
class Sweep:
    """A sweep in a folder, and its MLflow store."""

    plan: SweepPlan
    kit: TrialKit
    stored: StoredSweep
    tracking: Any

    def recorder(self) -> SweepRecorder:
        """That of a driver that begins now."""
        view = SweepView(Console(file=StringIO()), 2, self.plan.rungs)
        return SweepRecorder(self.stored, self.plan, self.kit, view, self.tracking)

    def leave_result(self, trial: str, values: dict[str, Any], epochs: int) -> None:
        """What a trial writes after so many epochs."""
        accuracies = {"validation/clean_accuracy": 0.9, "validation/robust_accuracy": 0.6, "validation/selection": 0.6}
        history = tuple(EpochRecord(epoch, accuracies) for epoch in range(epochs + 1))
        RungResult(values, history, None).save(last_training(self.kit.place(trial), self.plan, values, 1))

    def statuses(self) -> dict[str, str]:
        """Of the trials' MLflow runs."""
        client = MlflowClient(self.tracking.uri)
        runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
        return {run.data.tags["distsens.trial"]: run.info.status for run in runs if "distsens.trial" in run.data.tags}


@pytest.fixture
def make_sweep(tmp_path: Path) -> Callable[..., Sweep]:
    def make(**settings: Any) -> Sweep:
        plan = SweepPlan.parse({**RECIPE, "sweep": {**RECIPE["sweep"], **settings}})
        uri, place = f"sqlite:///{tmp_path}/mlflow.db", open_place(str(tmp_path / "sweep"))
        experiment = plan.base.tracking.experiment
        parent = TrackedRun.create(uri, experiment=experiment, name="sweep", params={}, tags={}, artifact_root=None)
        stored = StoredSweep("sweep", place, {}, parent.run_id)
        parent.finish("FINISHED")
        tracking = SimpleNamespace(uri=uri, artifact_root=None, tags={})
        return Sweep(plan, TrialKit(plan, place.url, None, None), stored, tracking)

    return make


VALUES = {"stabilize.weight": 0.5}


def drawn(sweep: Sweep, *numbers: int, **state: Any) -> None:
    """Write down that trials were drawn by a driver that was killed."""
    for number in numbers:
        sweep.stored.keep(TrialState(f"{number:05d}", number, dict(VALUES), **state))


def end(recorder: SweepRecorder, handle: str) -> None:
    """Ray Tune has given up the trial."""
    recorder.ended(handle, DIED)
    for one in recorder._taken_ends():
        recorder._end(one)


@pytest.mark.parametrize("scheduler", ["none", "pbt"])
def test_a_trial_that_ended_under_a_driver_that_was_killed_is_finished(
    make_sweep: Callable[..., Sweep], scheduler: str
) -> None:
    sweep = make_sweep(scheduler=scheduler)
    drawn(sweep, 0, 1)
    sweep.leave_result("00000", VALUES, epochs=6)
    recorder = sweep.recorder()
    recorder.settle()
    state, other = recorder.in_order
    assert (state.status, state.rungs[1].epochs, state.rungs[1].robust) == ("finished", 6, 0.6)
    assert other.unfinished
    assert sweep.statuses() == {"00000": "FINISHED"}
    assert sweep.recorder().in_order == [state, other], "it is not in storage"


def test_one_of_a_population_that_was_between_intervals_is_not_finished(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(scheduler="pbt")
    drawn(sweep, 0)
    sweep.leave_result("00000", VALUES, epochs=3)
    recorder = sweep.recorder()
    recorder.settle()
    assert [one.unfinished for one in recorder.in_order] == [True]


def test_what_a_trial_failed_of_itself_is_not_tried_again(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    drawn(sweep, 0, 1)
    recorder = sweep.recorder()
    for trial in ("00000", "00001"):
        recorder._take(TrialEvent(trial, 1, Began(VALUES, 0)))
        recorder._take(TrialEvent(trial, 1, RungEnded(0.0, 0.0, FAILED, "it collapsed", last=True)))
    assert sweep.statuses() == {"00000": "FAILED", "00001": "FAILED"}
    with pytest.raises(TooManyFailedError, match=r"^2 trials failed, more than sweep.max_failed \(1\); trial 1: it"):
        recorder.check()
    again = sweep.recorder()
    again.settle()
    assert again.draws.left == 14
    assert again.draws.next().number == 2


def test_a_resumed_sweep_tries_again_what_may_have_passed_and_counts_it_as_no_failure(
    make_sweep: Callable[..., Sweep],
) -> None:
    sweep = make_sweep(max_failed=0)
    drawn(sweep, 0)
    before = sweep.recorder()
    before.draws.call("handle", before.draws.next())
    before._take(TrialEvent("00000", 0, GaveUp("the storage answers 503")))
    end(before, "handle")
    (state,) = before.in_order
    assert (state.status, state.failure, state.passing) == ("failed", "the storage answers 503", True)
    with pytest.raises(TooManyFailedError, match=r"trial 0: the storage answers 503$"):
        before.check()
    after = sweep.recorder()
    after.settle()
    (state,) = after.in_order
    assert (state.status, state.failure, state.passing) == ("interrupted", None, False)
    after.check()
    assert after.draws.left == sweep.plan.total
    assert after.draws.next().number == 0


def test_a_trial_whose_process_died_before_it_began_is_recorded_as_failed(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    drawn(sweep, 0)
    recorder = sweep.recorder()
    recorder.draws.call("handle", recorder.draws.next())
    end(recorder, "handle")
    (state,) = recorder.in_order
    assert (state.status, state.failure, state.passing) == ("failed", "its process died", True)
    assert sweep.statuses() == {"00000": "FAILED"}


def test_a_run_that_a_killed_driver_created_and_did_not_write_down_is_taken_up(
    make_sweep: Callable[..., Sweep],
) -> None:
    sweep = make_sweep()
    for _ in range(2):
        drawn(sweep, 0)
        sweep.recorder()._take(TrialEvent("00000", 1, Began(VALUES, 0)))
        assert sweep.statuses() == {"00000": "RUNNING"}
    client = MlflowClient(sweep.tracking.uri)
    assert len(client.search_runs([one.experiment_id for one in client.search_experiments()])) == 2


def test_a_trial_whose_own_file_is_lost_is_known_by_what_its_rungs_have_left(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    sweep.stored.save()
    drawn(sweep, 0)
    for trial in ("00002", "of_another_version"):
        sweep.leave_result(trial, VALUES, epochs=6)
    before = sweep.stored.place.keys("")
    found = find_sweep("sweep", sweep.stored.place.url.rpartition("/")[0])
    assert found.place.keys("") == before
    recorder = sweep.recorder()
    recorder.settle()
    assert [(one.trial, one.number, one.status, one.values) for one in recorder.in_order] == [
        ("00000", 0, "running", VALUES),
        ("00002", 2, "finished", VALUES),
        ("of_another_version", 3, "finished", VALUES),
    ]
    handed = [recorder.draws.next() for _ in range(recorder.draws.left)]
    assert [one.number for one in handed] == [0, 1, *range(4, 16)]


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("trials/00000/trial.json", b'{"trial": "00000", "num'),
        ("trials/00000/trial.json", b"\xff"),
        ("trials/00000/trial.json", b"[]"),
        ("trials/00000/trial.json", b'{"trial": "00000", "number": "many", "values": {}}'),
        ("trials/00001/rung-1/result.json", b'{"values": 3}'),
        ("trials/00001/rung-1/result.json", b'{"history": []}'),
        ("trials/00000/pointer.json", b'{"url": 3}'),
    ],
)
def test_a_sweep_of_which_a_file_is_damaged_is_refused_in_one_line_and_loses_nothing(
    make_sweep: Callable[..., Sweep], key: str, content: bytes
) -> None:
    sweep = make_sweep()
    sweep.stored.save()
    drawn(sweep, 0)
    place = sweep.stored.place
    place.put(key, content)
    before = {name: place.get(name) for name in place.keys("")}
    with pytest.raises(InputError, match=rf"^resume: got 'sweep'; its {key} is damaged \(.*its trials stay") as raised:
        find_sweep("sweep", place.url.rpartition("/")[0])
    assert "\n" not in str(raised.value)
    assert {name: place.get(name) for name in place.keys("")} == before
