from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from distsens.errors import InputError
from distsens.tracking import TakenOverError, TrackedRun

if TYPE_CHECKING:
    from tests.tracking.conftest import Store

NewRun = Callable[[], TrackedRun]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The metric names of each call that reaches the store."""
    calls: list[list[str]] = []
    real = MlflowClient.log_batch

    def counted(self: MlflowClient, run_id: str, metrics: tuple = (), **rest: object) -> object:
        calls.append(sorted(metric.key for metric in metrics))
        return real(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    return calls


def reopened(run: TrackedRun) -> TrackedRun:
    """The run as the next driver sees it, after this one has ended it."""
    run.finish("FAILED", "lost a node")
    return TrackedRun.reopen(run.uri, run.run_id)


def artifact(run: TrackedRun, path: str, folder: Path) -> bytes:
    local = download_artifacts(run_id=run.run_id, artifact_path=path, dst_path=str(folder), tracking_uri=run.uri)
    return Path(local).read_bytes()


def steps(store: Store, run: TrackedRun, metric: str) -> list[int]:
    return [point.step for point in store.client.get_metric_history(run.run_id, metric)]


def test_a_new_run_is_running_with_its_name_params_and_tags(store: Store):
    params = {"attack.epsilon": 0.3, "model.width": 8, "resume": None, "amp": True}
    run = TrackedRun.create(
        store.uri, experiment="created", name="sns", params=params, tags={"git": "abc"}, artifact_root=None
    )
    found = store.client.get_run(run.run_id)
    run.finish("FINISHED")
    assert (found.info.status, found.info.run_name) == ("RUNNING", "sns")
    assert found.data.params == {
        "attack.epsilon": "0.3",
        "model.width": "8",
        "resume": "None",
        "amp": "True",
    }
    assert found.data.tags["git"] == "abc"
    assert store.client.get_experiment(found.info.experiment_id).name == "created"


def test_more_params_than_one_request_may_hold_are_all_written(store: Store):
    params = {f"p{i}": i for i in range(250)}
    run = TrackedRun.create(store.uri, experiment="tests", name="many", params=params, tags={}, artifact_root=None)
    run.finish("FINISHED")
    assert store.client.get_run(run.run_id).data.params == {key: str(value) for key, value in params.items()}


def test_a_reopened_run_is_the_same_run(store: Store):
    run = TrackedRun.create(
        store.uri, experiment="restarts", name="once", params={"seed": 3}, tags={}, artifact_root=None
    )
    again = reopened(run)
    found = store.client.get_run(again.run_id)
    again.finish("FINISHED")
    assert again.run_id == run.run_id
    assert found.info.status == "RUNNING"
    assert found.data.params == {"seed": "3"}
    assert "distsens.outcome" not in found.data.tags, "the outcome of the first attempt is no longer true"
    assert len(store.client.search_runs([found.info.experiment_id])) == 1


def test_a_run_that_the_store_does_not_hold_cannot_be_reopened(store: Store):
    for run_id in ("0" * 32, "not an id"):
        with pytest.raises(InputError, match="no such run"):
            TrackedRun.reopen(store.uri, run_id)


def test_a_deleted_run_cannot_be_reopened(store: Store, run: TrackedRun):
    run.finish("FINISHED")
    store.client.delete_run(run.run_id)
    with pytest.raises(InputError, match="deleted"):
        TrackedRun.reopen(store.uri, run.run_id)


def test_an_epoch_is_one_call_at_its_own_step(store: Store, run: TrackedRun, batches: list[list[str]]):
    for epoch in range(3):
        run.log_epoch(epoch, {"train/loss": 1 / (epoch + 1), "val/robust": 0.1 * epoch})
    assert batches == [["epoch", "train/loss", "val/robust"]] * 3
    history = store.client.get_metric_history(run.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 1 / 2), (2, 1 / 3)]
    assert run.last_logged_epoch() == 2


def test_a_resumed_run_that_repeats_epochs_makes_no_duplicates(store: Store, run: TrackedRun):
    assert run.last_logged_epoch() is None
    for epoch in range(3):
        run.log_epoch(epoch, {"loss": 1.0})
    again = reopened(run)
    assert again.last_logged_epoch() == 2
    for epoch in range(1, 5):
        again.log_epoch(epoch, {"loss": 1.0})
    again.finish("FINISHED")
    assert steps(store, run, "loss") == steps(store, run, "epoch") == [0, 1, 2, 3, 4]


def test_numbers_that_are_not_finite_are_stored_as_not_a_number(store: Store, run: TrackedRun):
    run.log_epoch(0, {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "loss": 2.5})
    stored = store.client.get_run(run.run_id).data.metrics
    assert all(math.isnan(stored[name]) for name in ("nan", "inf", "minus"))
    assert stored["loss"] == 2.5


def test_names_that_mlflow_refuses_are_changed_and_stay_apart(store: Store, run: TrackedRun):
    layers = {"layer.a@b": 0.5, "layer.a#b": 0.25, "layer.a_b": 1.0, "layer.A_b": 2.0, "layer.a/": 3.0}
    for epoch in range(2):
        run.log_epoch(epoch, layers)
    stored = store.client.get_run(run.run_id).data.metrics
    assert sorted(stored.values()) == [0.25, 0.5, 1.0, 1.0, 2.0, 3.0], "one of them is the epoch"
    assert stored["layer.a_b"] == 1.0
    assert all(steps(store, run, name) == [0, 1] for name in stored)


def test_a_result_is_written_once_and_again_when_it_changes(store: Store, run: TrackedRun):
    run.log_epoch(4, {"loss": 1.0})
    for robust in (0.5, 0.5, 0.25):
        run.log_result({"test/robust": robust})
    history = store.client.get_metric_history(run.run_id, "test/robust")
    assert sorted((point.step, point.value) for point in history) == [(4, 0.25), (4, 0.5)]


def test_a_data_set_is_an_input_with_its_digest_and_never_twice(store: Store, run: TrackedRun):
    digest = "0123456789abcdef" * 4

    def record(driver: TrackedRun) -> None:
        driver.log_dataset(
            "mnist",
            digest=digest,
            context="train",
            source="s3://b/mnist",
            images=60,
            image_shape=(1, 28, 28),
            classes=10,
        )

    record(run)
    again = reopened(run)
    record(again)
    again.finish("FINISHED")
    (found,) = store.client.get_run(run.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("mnist", digest[:36])
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "train")]
    profile = json.loads(found.dataset.profile)
    assert profile == {"num_rows": 60, "image_shape": [1, 28, 28], "classes": 10, "digest": digest}
    assert json.loads(found.dataset.source) == {"uri": "s3://b/mnist"}


def test_artifacts_are_stored_as_they_are_given(run: TrackedRun, tmp_path: Path):
    run.log_bytes("deep/er/data.bin", b"\x00\xff")
    run.log_text("note.txt", "robust: ε = 8/255\n")
    run.log_json("claims/one.json", {"clean": 0.9})
    figure = Figure()
    figure.subplots().plot([1, 2])
    run.log_figure("figures/curve.png", figure)
    assert artifact(run, "deep/er/data.bin", tmp_path) == b"\x00\xff"
    assert artifact(run, "note.txt", tmp_path).decode() == "robust: ε = 8/255\n"
    assert json.loads(artifact(run, "claims/one.json", tmp_path)) == {"clean": 0.9}
    assert artifact(run, "figures/curve.png", tmp_path).startswith(b"\x89PNG")


def test_system_metrics_are_recorded_and_the_watch_stops(store: Store, run: TrackedRun):
    def watch() -> list[int]:
        with run.watch_system(interval_s=0.1):
            time.sleep(0.7)
        assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}
        return steps(store, run, "system/cpu_utilization_percentage")

    first = watch()
    second = watch()
    assert first
    assert second == list(range(len(second))), "the second watch goes on where the first ended"
    assert len(second) > len(first)


def test_the_watch_stops_when_training_raises(run: TrackedRun):
    with pytest.raises(RuntimeError, match="diverged"), run.watch_system(interval_s=0.1):
        raise RuntimeError("diverged")
    assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_ends_with_its_status_and_its_outcome(store: Store, run: TrackedRun, status):
    run.finish(status, "because")
    found = store.client.get_run(run.run_id)
    assert (found.info.status, found.data.tags["distsens.outcome"]) == (status, "because")
    assert found.info.end_time >= found.info.start_time


def test_an_outcome_that_names_a_file_which_is_not_utf_8_is_kept(store: Store, run: TrackedRun):
    run.finish("FAILED", "cannot read \udcff.png\x1b[31m")
    found = store.client.get_run(run.run_id)
    assert (found.info.status, found.data.tags["distsens.outcome"]) == ("FAILED", r"cannot read \udcff.png\x1b[31m")


def test_only_the_first_end_counts(store: Store, run: TrackedRun):
    run.finish("FAILED", "first")
    run.finish("FINISHED", "second")
    found = store.client.get_run(run.run_id)
    assert (found.info.status, found.data.tags["distsens.outcome"]) == ("FAILED", "first")


def test_a_tag_can_be_replaced(store: Store, run: TrackedRun):
    run.set_tag("best", "epoch 1")
    run.set_tag("best", "epoch 2")
    assert store.client.get_run(run.run_id).data.tags["best"] == "epoch 2"


def test_a_driver_whose_run_another_has_resumed_writes_nothing_more(store: Store, run: TrackedRun) -> None:
    run.log_epoch(1, {"loss": 1.0})
    later = TrackedRun.reopen(store.uri, run.run_id)
    with pytest.raises(TakenOverError, match="another driver has resumed this run"):
        run.log_epoch(2, {"loss": 2.0})
    run.finish("FAILED", "taken over")
    assert store.client.get_run(run.run_id).info.status == "RUNNING"
    later.log_epoch(2, {"loss": 0.5})
    later.finish("FINISHED")
    found = store.client.get_run(run.run_id)
    assert (found.info.status, found.data.metrics["loss"]) == ("FINISHED", 0.5)
    assert "distsens.outcome" not in found.data.tags


def test_the_runs_of_a_sweeps_trials_are_its_children_and_end_with_it(store: Store, run: TrackedRun) -> None:
    experiment = store.client.get_experiment(store.client.get_run(run.run_id).info.experiment_id).name

    def trial(sweep: str) -> TrackedRun:
        return TrackedRun.create(
            store.uri, experiment=experiment, name="trial", params={}, tags={}, artifact_root=None, sweep=sweep
        )

    done, going_on, other = trial(run.run_id), trial(run.run_id), trial("another sweep")
    done.finish("FINISHED")
    run.finish("FAILED", "too many failed")
    runs = [store.client.get_run(one.run_id) for one in (done, going_on, other)]
    assert [one.info.status for one in runs] == ["FINISHED", "KILLED", "RUNNING"]
    assert runs[0].data.tags["mlflow.parentRunId"] == run.run_id
    other.finish("KILLED")
