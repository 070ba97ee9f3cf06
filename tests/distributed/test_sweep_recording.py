"""What the driver writes down of trials that nobody has told of, because it or they were killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from distsens.distributed.sweep_events import GaveUp, TrialEvent
from distsens.distributed.sweep_record import StoredSweep, find_sweep
from distsens.distributed.sweep_recording import SweepRecorder, TooManyFailedError
from distsens.distributed.trial import RungResult, TrialKit, last_training
from distsens.errors import InputError
from distsens.report.sweep import SweepView
from distsens.search import SweepPlan
from distsens.storage import open_place
from distsens.tracking import TrackedRun
from distsens.training import EpochRecord

RECIPE: dict[str, Any] = {
    "training": {"epochs": 6},
    "search": {"stabilize.weight": {"uniform": [0, 1]}},
    "sweep": {"max_failed": 1},
}


@dataclass
class TuneTrial:
    """What is looked at of Ray Tune's trials."""

    trial_id: str
    status: str
    config: dict[str, Any] = field(default_factory=lambda: {"stabilize.weight": 0.5})
    TERMINATED: str = "TERMINATED"
    ERROR: str = "ERROR"


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

    def leave_result(self, trial: str, values: dict[str, Any]) -> None:
        """What a trial writes when it has come to its end."""
        accuracies = {"validation/clean_accuracy": 0.9, "validation/robust_accuracy": 0.6, "validation/selection": 0.6}
        history = tuple(EpochRecord(epoch, accuracies) for epoch in range(3))
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


@pytest.mark.parametrize("scheduler", ["none", "pbt"])
def test_a_trial_that_ended_under_a_driver_that_was_killed_is_finished(
    make_sweep: Callable[..., Sweep], scheduler: str
) -> None:
    sweep = make_sweep(scheduler=scheduler)
    one = TuneTrial("t0", "TERMINATED")
    sweep.leave_result(one.trial_id, one.config)
    recorder = sweep.recorder()
    recorder.settle([one, TuneTrial("t1", "PENDING")])
    (state,) = recorder.in_order
    assert (state.status, state.rungs[1].epochs, state.rungs[1].robust) == ("finished", 2, 0.6)
    assert sweep.statuses() == {"t0": "FINISHED"}
    assert sweep.recorder().in_order == [state], "it is not in storage"


def test_a_trial_whose_process_died_before_it_began_is_recorded_as_failed(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    recorder = sweep.recorder()
    recorder.settle([TuneTrial("t0", "ERROR")])
    (state,) = recorder.in_order
    assert (state.status, state.failure, state.values) == ("failed", "its process died", {"stabilize.weight": 0.5})
    assert sweep.statuses() == {"t0": "FAILED"}
    recorder.check()
    recorder.settle([TuneTrial("t0", "ERROR"), TuneTrial("t1", "ERROR")])
    with pytest.raises(TooManyFailedError, match=r"^2 trials failed, more than sweep.max_failed \(1\)"):
        recorder.check()
    assert [one.number for one in recorder.in_order] == [0, 1]


def test_a_resumed_sweep_tries_again_what_may_have_passed_and_counts_it_as_no_failure(
    make_sweep: Callable[..., Sweep],
) -> None:
    sweep = make_sweep(max_failed=0)
    before = sweep.recorder()
    before._take(TrialEvent("t0", 0, GaveUp("the storage answers 503")))
    before.settle([TuneTrial("t0", "ERROR")])
    (state,) = before.in_order
    assert (state.status, state.failure, state.passing) == ("failed", "the storage answers 503", True)
    with pytest.raises(TooManyFailedError, match=r"trial 0: the storage answers 503$"):
        before.check()
    after = sweep.recorder()
    after.settle([TuneTrial("t0", "ERROR")], errors=False)
    (state,) = after.in_order
    assert (state.status, state.failure, state.passing) == ("interrupted", None, False)
    after.check()


def test_a_trial_that_ray_tune_has_forgotten_is_none(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    recorder = sweep.recorder()
    recorder.settle([TuneTrial("t0", "ERROR"), TuneTrial("t1", "ERROR")])
    again = sweep.recorder()
    again.settle([TuneTrial("t1", "ERROR")])
    assert [(one.trial, one.number) for one in again.in_order] == [("t1", 1)]
    assert [one.trial for one in sweep.recorder().in_order] == ["t1"]


def test_a_run_that_a_killed_driver_created_and_did_not_write_down_is_taken_up(
    make_sweep: Callable[..., Sweep],
) -> None:
    sweep = make_sweep()
    sweep.recorder().settle([TuneTrial("t0", "ERROR")])
    sweep.stored.forget("t0")
    recorder = sweep.recorder()
    recorder.settle([TuneTrial("t0", "ERROR"), TuneTrial("t1", "ERROR")])
    assert sweep.statuses() == {"t0": "FAILED", "t1": "FAILED"}
    client = MlflowClient(sweep.tracking.uri)
    assert len(client.search_runs([one.experiment_id for one in client.search_experiments()])) == 3


def test_a_trial_that_ray_tune_has_forgotten_keeps_what_it_has_done(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep()
    sweep.recorder().settle([TuneTrial("t0", "ERROR"), TuneTrial("t1", "ERROR")])
    for trial in ("t0", "t1"):
        state = sweep.stored.trials()[trial]
        state.status = "running"
        sweep.stored.keep(state)
    sweep.leave_result("t1", {"stabilize.weight": 0.5})
    recorder = sweep.recorder()
    recorder.settle([])
    assert [(one.trial, one.status) for one in recorder.in_order] == [("t1", "finished")]
    assert list(sweep.stored.trials()) == ["t1"]
    assert sweep.stored.place.keys("trials/t1/rung-1") == ["trials/t1/rung-1/result.json"]


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ({}, r"Ray Tune's state of it, tune/experiment_state-\*.json, is gone; its trials stay as they are"),
        (
            {"experiment_state-1.json": b'{"trial_data": []}', "experiment_state-2.json": b'{"trial_data": [["'},
            r"Ray Tune's state of it, tune/experiment_state-2.json, is damaged \(Unterminated string",
        ),
        ({"experiment_state-1.json": b"\xff"}, r"tune/experiment_state-1.json, is damaged \('utf-8' codec"),
    ],
)
def test_a_sweep_whose_tune_state_cannot_be_read_is_refused_once_a_trial_has_done_anything(
    make_sweep: Callable[..., Sweep], states: dict[str, bytes], says: str
) -> None:
    sweep = make_sweep()
    place = sweep.stored.place
    sweep.stored.save()
    for name, content in states.items():
        place.put(f"tune/{name}", content)
    storage = place.url.rpartition("/")[0]
    assert find_sweep("sweep", storage).mlflow_run_id == sweep.stored.mlflow_run_id, "it begins anew"
    sweep.leave_result("t0", {"stabilize.weight": 0.5})
    before = place.keys("")
    with pytest.raises(InputError, match=rf"^resume: got 'sweep'; .*{says}"):
        find_sweep("sweep", storage)
    assert place.keys("") == before
