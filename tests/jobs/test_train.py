"""The training job, run as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
import safetensors.torch
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from running_ray import OPEN

from distsens.assembly import build_model, load_data
from distsens.experiment import Experiment
from distsens.storage import Checkpoints, open_place, published

pytestmark = pytest.mark.ray

# Ray's helpers of a node whose driver was killed outright: they end by a clock of their own, minutes later at times.
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@pytest.fixture(scope="module")
def finished(make_job: Callable[[], Any], quick: list[str]) -> tuple[Any, dict[str, Any]]:
    """A run with two workers that nothing disturbed: the job and its summary."""
    job = make_job()
    return job, job.finish(*quick, "--workers.num", "2", MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="1")


@pytest.fixture(scope="module")
def tracked(finished: tuple[Any, dict[str, Any]]) -> tuple[MlflowClient, Run]:
    _, summary = finished
    client = MlflowClient(summary["mlflow_uri"])
    return client, client.get_run(summary["mlflow_run_id"])


def weights(summary: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Final weights of a finished run, which its last checkpoint holds."""
    found = Checkpoints(open_place(summary["storage"])).newest()
    assert found.checkpoint is not None
    assert found.checkpoint.manifest.epoch == summary["epochs"]
    return safetensors.torch.load(found.checkpoint.files["model.safetensors"])


def statuses(job: Any) -> list[str]:
    """Statuses of all runs in the job's MLflow store."""
    client = MlflowClient(f"sqlite:///{job.storage}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


def wait_for_status(job: Any, status: str) -> None:
    deadline = time.monotonic() + 30
    while statuses(job) != [status]:
        assert time.monotonic() < deadline, statuses(job)
        time.sleep(0.5)


def test_summary_holds_the_documented_keys_and_believable_numbers(finished: tuple[Any, dict[str, Any]]) -> None:
    job, summary = finished
    assert summary["status"] == "finished"
    assert summary["message"] is None
    assert summary["epochs"] == 6
    assert summary["workers"] == 2
    assert 1 <= summary["best_epoch"] <= 6
    assert summary["test"]["images"] == 360
    assert summary["test"]["pgd_accuracy"] <= summary["test"]["fgsm_accuracy"] <= summary["test"]["clean_accuracy"] <= 1
    assert summary["test"]["clean_accuracy"] > 0.3
    assert 0 < summary["attack_share"] < 1
    assert set(summary["sensitivity"]) == {f"network.{n}" for n in ("conv1", "conv2", "conv3", "conv4", "fc1", "fc2")}
    output = job.processes[0].output
    assert "PGD-5" in output
    assert "network.conv4" in output
    assert f"MLflow run {summary['mlflow_run_id']}" in output
    assert f"next: mlflow ui --backend-store-uri {summary['mlflow_uri']}" in output


def test_mlflow_holds_one_finished_run_with_every_field_as_parameter(
    finished: tuple[Any, dict[str, Any]], tracked: tuple[MlflowClient, Run]
) -> None:
    job, summary = finished
    _, run = tracked
    assert statuses(job) == ["FINISHED"]
    assert run.data.params["threat.eps"] == "0.05"
    assert run.data.params["stabilize.layers"] == '["auto"]'
    assert run.data.params["workers.num"] == "2"
    assert {"distsens.commit", "distsens.workers", "distsens.ray_job", "version.torch", "version.ray"} <= set(
        run.data.tags
    )
    assert run.info.run_name == summary["run"]
    contexts = {given.tags[0].value: given.dataset.digest for given in run.inputs.dataset_inputs}
    assert set(contexts) == {"train", "validation", "test"}
    assert len(set(contexts.values())) == 3


def test_mlflow_holds_each_epochs_metrics_once(tracked: tuple[MlflowClient, Run]) -> None:
    client, run = tracked
    for name, first in {
        "loss": 1,
        "loss/adversarial_ce": 1,
        "loss/stabilizing": 1,
        "validation/clean_accuracy": 0,
        "validation/robust_accuracy": 0,
        "sensitivity/absolute/network.conv1": 0,
        "sensitivity/relative/network.conv1": 0,
        "sensitivity/kept/network.conv1": 1,
        "throughput/images_per_second": 1,
        "throughput/gradient_evaluations_per_second": 1,
        "throughput/attack_share": 1,
        "schedule/lr": 1,
        "schedule/eps": 1,
        "schedule/sns_weight": 1,
    }.items():
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, name)] == list(range(first, 7)), (
            name
        )
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(run.data.metrics)
    assert run.data.metrics["test/pgd_accuracy"] <= run.data.metrics["test/clean_accuracy"]


def test_mlflow_holds_the_neurons_of_every_epoch(
    finished: tuple[Any, dict[str, Any]], tracked: tuple[MlflowClient, Run], tmp_path: Path
) -> None:
    _, summary = finished
    client, run = tracked
    folder = client.download_artifacts(run.info.run_id, "sensitivity", str(tmp_path))
    tables = sorted(Path(folder).iterdir())
    assert [table.name for table in tables] == [f"epoch-{epoch:04d}.parquet" for epoch in range(7)]
    best = pd.read_parquet(tables[summary["best_epoch"]])
    assert best.groupby("layer").size().to_dict()["network.fc1"] == 200
    mean = best[best.layer == "network.conv1"].absolute.mean()
    assert mean == pytest.approx(summary["sensitivity"]["network.conv1"]["absolute"]["best"])
    assert best[best.layer == "network.conv1"].selected.sum() == 4
    stored = open_place(summary["storage"]).get(f"sensitivity/{tables[1].name}")
    assert pd.read_parquet(BytesIO(stored)).equals(pd.read_parquet(tables[1]))
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"experiment.yaml", "checkpoint.json", "training.png", "training.svg", "weights"} <= artifacts


def test_the_logged_model_is_the_best_epoch_and_takes_pixels_in_zero_to_one(
    finished: tuple[Any, dict[str, Any]],
    tracked: tuple[MlflowClient, Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, summary = finished
    client, run = tracked
    monkeypatch.setenv("MLFLOW_TRACKING_URI", summary["mlflow_uri"])
    model = mlflow.pytorch.load_model(summary["mlflow_model"])
    experiment = Experiment.parse(summary["experiment"])
    dataset = load_data(experiment)
    images = torch.from_numpy(dataset.test.images.astype(np.float32) / 255)
    right = (model(images).argmax(1).numpy() == dataset.test.labels).mean()
    assert right == pytest.approx(summary["test"]["clean_accuracy"])
    ours = build_model(experiment, dataset.shape, 10).eval()
    published = client.download_artifacts(run.info.run_id, "weights/model.safetensors", str(tmp_path))
    ours.load_state_dict(safetensors.torch.load_file(published))
    torch.testing.assert_close(model(images), ours(images), rtol=1e-4, atol=1e-4)
    assert mlflow.models.get_model_info(summary["mlflow_model"]).signature is not None


def test_checkpoints_are_pruned_to_the_newest_and_the_best(finished: tuple[Any, dict[str, Any]]) -> None:
    _, summary = finished
    epochs = [manifest.epoch for manifest in Checkpoints(open_place(summary["storage"])).manifests()]
    assert set(epochs) == {5, 6, summary["best_epoch"]}


def test_the_best_weights_are_published_beside_the_runs(finished: tuple[Any, dict[str, Any]]) -> None:
    job, summary = finished
    storage = open_place(str(job.storage))
    assert summary["published"] == storage.child(f"models/{summary['run']}").url
    assert f"model {summary['published']}" in job.processes[0].output
    model = published.fetch(summary["published"])
    best = Checkpoints(open_place(summary["storage"])).load(summary["best_epoch"])
    assert model.files["model.safetensors"] == best.files["model.safetensors"]
    assert (
        Experiment.parse(yaml.safe_load(model.files["experiment.yaml"])).model_dump(mode="json")
        == (summary["experiment"])
    )
    assert model.manifest.metrics["test/pgd_accuracy"] == summary["test"]["pgd_accuracy"]
    assert list(published.models(storage)) == [summary["run"]]


def test_one_worker_trains_to_the_same_parameters_as_two(job: Any, quick: list[str]) -> None:
    # Few steps of SGD: rounding grows with every step, and Adam makes any rounding of a zero gradient a full step.
    short = [*quick, "--training.optimizer", "sgd", "--training.lr", "0.05", "--training.epochs", "2"]
    one, two = (job.finish(*short, "--workers.num", workers) for workers in ("1", "2"))
    assert (one["workers"], two["workers"]) == (1, 2)
    ours, theirs = weights(one), weights(two)
    untrained = build_model(Experiment.parse(one["experiment"]), (1, 8, 8), 10).state_dict()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=1e-4, atol=1e-5), name
    assert not torch.allclose(ours["network.conv1.weight"], untrained["network.conv1.weight"], atol=1e-3)
    assert one["sensitivity"]["network.conv1"]["absolute"] == pytest.approx(
        two["sensitivity"]["network.conv1"]["absolute"], rel=1e-3
    )


@pytest.mark.drill
def test_a_worker_killed_after_a_checkpoint_changes_nothing(
    lone_job: Any, quick: list[str], finished: tuple[Any, dict[str, Any]], nothing_left: Callable[..., None]
) -> None:
    _, undisturbed = finished
    summary = lone_job.folder / "summary.json"
    process = lone_job.start(*quick, "--workers.num", "2", "--summary", str(summary))
    process.wait_for("epoch   3")
    os.kill(a_training_worker(process.popen.pid), signal.SIGKILL)
    assert process.end() == 0, process.output
    assert "resumed after epoch" in process.output
    result = json.loads(summary.read_text())
    assert_same_weights(weights(result), weights(undisturbed))
    assert result["test"] == undisturbed["test"]
    assert statuses(lone_job) == ["FINISHED"]
    assert_epochs_once(result)
    nothing_left()


@pytest.mark.drill
def test_a_driver_killed_and_resumed_changes_nothing(
    lone_job: Any,
    quick: list[str],
    finished: tuple[Any, dict[str, Any]],
    nothing_left: Callable[..., None],
    running: dict[str, str],
) -> None:
    _, undisturbed = finished
    process = lone_job.start(*quick, "--workers.num", "2")
    process.wait_for("epoch   2")
    process.popen.kill()
    process.end()
    wait_for_status(lone_job, "KILLED")
    nothing_left(but=RAY_AGENTS)
    result = lone_job.finish("--resume", process.run, "--workers.num", "2", **running)
    assert result["run"] == process.run
    assert_same_weights(weights(result), weights(undisturbed))
    assert result["test"] == undisturbed["test"]
    assert statuses(lone_job) == ["FINISHED"]
    assert_epochs_once(result)


@pytest.mark.drill
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_killed_resumable_and_leaves_no_process(
    lone_job: Any,
    quick: list[str],
    number: signal.Signals,
    nothing_left: Callable[..., None],
    running: dict[str, str],
) -> None:
    summary = lone_job.folder / "summary.json"
    process = lone_job.start(*quick, "--workers.num", "2", "--summary", str(summary))
    process.wait_for("epoch   2")
    process.popen.send_signal(number)
    assert process.end() == 128 + number, process.output
    hint = next(line for line in process.lines if line.startswith("resume with: "))
    said = hint.removeprefix("resume with: python jobs/train.py --resume ")
    assert said == str(lone_job.storage / process.run)
    assert "Traceback" not in process.output
    assert statuses(lone_job) == ["KILLED"]
    assert json.loads(summary.read_text())["status"] == "interrupted"
    nothing_left()
    assert Checkpoints(open_place(str(lone_job.storage / process.run))).newest().checkpoint is not None
    if number == signal.SIGTERM:
        resumed = lone_job.finish("--resume", said, "--workers.num", "1", **running)
        assert (resumed["epochs"], resumed["workers"]) == (6, 1)
        assert statuses(lone_job) == ["FINISHED"]


@pytest.mark.drill
def test_a_run_whose_controller_is_killed_fails_in_one_line_and_can_be_resumed(
    lone_job: Any, quick: list[str], nothing_left: Callable[..., None]
) -> None:
    process = lone_job.start(*quick)
    process.wait_for("epoch   1")
    for child in psutil.Process(process.popen.pid).children(recursive=True):
        if "TrainController" in " ".join(child.cmdline()):
            child.kill()
    assert process.end() == 1, process.output
    failed, hint = process.lines[-2:]
    assert failed.startswith("failed: Ray: ")
    assert hint.startswith("resume with: ")
    assert "Traceback" not in process.output
    assert statuses(lone_job) == ["FAILED"]
    nothing_left()


@pytest.mark.drill
def test_a_run_that_its_mlflow_store_refuses_fails_in_one_line_and_can_be_resumed(job: Any, quick: list[str]) -> None:
    process = job.start(*quick)
    process.wait_for("epoch   1")
    client = MlflowClient(f"sqlite:///{job.storage}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "distsens"]
    (run,) = client.search_runs([experiment.experiment_id])
    client.delete_run(run.info.run_id)  # from now on the store takes nothing more of it
    assert process.end() == 1, process.output
    assert "the MLflow run cannot be ended now" in process.output
    failed, hint = process.lines[-2:]
    assert failed.startswith("failed: MLflow: ")
    assert hint.startswith("resume with: ")
    assert "Traceback" not in process.output
    client.restore_run(run.info.run_id)
    wait_for_status(job, "FAILED")  # by its guardian


def test_a_nan_loss_stops_the_run_with_epoch_step_and_last_good_checkpoint(job: Any, quick: list[str]) -> None:
    blown_up = "--training.optimizer sgd --training.lr 1e20 --training.schedule piecewise --training.warmup 0.5"
    process = job.run(*quick, *blown_up.split(), "--workers.num", "2")
    assert process.popen.returncode == 1, process.output
    last = next(line for line in process.lines if line.startswith("failed:"))
    assert "NaN" in last
    assert "step" in last
    assert "last good checkpoint" in last
    assert "Traceback" not in process.output
    assert statuses(job) == ["FAILED"]


def test_a_collapse_stops_the_run_with_a_clear_line(job: Any, quick: list[str]) -> None:
    crushed = "--stabilize.weight 1e4 --stabilize.measure relative --stabilize.selection all --stabilize.warmup_end 0"
    process = job.run(*quick, *crushed.split(), "--training.epochs", "12")
    assert process.popen.returncode == 1, process.output
    assert any(line.startswith("failed: the network collapsed by epoch") for line in process.lines), process.output
    assert any(line.startswith("notice: stabilize.warmup_start is 0.0") for line in process.lines)
    assert statuses(job) == ["FAILED"]


def test_a_run_that_is_rolled_back_and_ends_early_says_so_and_is_finished(job: Any, quick: list[str]) -> None:
    # One step of attack, a learning rate that makes accuracy jump, and an alarm that takes any jump for overfitting.
    jumpy = """--model.name lenet5 --stabilize.weight 0 --attack.steps 1 --training.lr 0.02 --training.schedule constant
    --training.eps_warmup 0 --training.epochs 40 --training.patience 3 --alarm.action rollback --alarm.gap 0.001
    --alarm.fall 0.99"""
    summary = job.finish(*quick, *jumpy.split(), "--workers.num", "2")
    output = job.processes[0].output
    assert summary["status"] == "finished"
    assert summary["alarm"].startswith("catastrophic overfitting at epoch ")
    assert "and on with the validation attack" in summary["alarm"]
    assert f"alarm: {summary['alarm']}" in output
    assert summary["epochs"] < 40
    assert summary["ended_early"].startswith(f"epoch {summary['epochs']}: robust accuracy has not risen above the ")
    assert f"ended early at {summary['ended_early']}" in output
    assert summary["test"]["images"] == 360
    run = MlflowClient(summary["mlflow_uri"]).get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["distsens.alarm"] == summary["alarm"]
    assert run.data.tags["distsens.ended_early"] == summary["ended_early"]
    assert {"validation/training_attack_accuracy", "validation/overfitting_gap", "alarm/rolled_back_to"} <= set(
        run.data.metrics
    )


def test_a_failing_worker_fails_the_run_and_says_why_and_has_a_thread_for_each_core(job: Any, quick: list[str]) -> None:
    (job.folder / "fragile.py").write_text(
        "import torch\n"
        "class Fragile(torch.nn.Module):\n"
        "    def __init__(self, shape, classes):\n"
        "        super().__init__()\n"
        "        self.hidden = torch.nn.Linear(shape[1] * shape[2], 16)\n"
        "        self.out = torch.nn.Linear(16, classes)\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            raise RuntimeError(f'never trains on {torch.get_num_threads()} threads')\n"
        "        return self.out(self.hidden(x.flatten(1)).relu())\n"
        "def build(*, shape, classes):\n"
        "    return Fragile(shape, classes)\n"
    )
    alone = "--workers.num 1 --workers.cpus 2 --workers.max_failures 0"
    process = job.run(*quick, "--model.name", "fragile:build", *alone.split())
    assert process.popen.returncode == 1, process.output
    assert any(line.startswith("failed:") and "never trains on 2 threads" in line for line in process.lines), (
        process.output
    )
    assert statuses(job) == ["FAILED"]


def test_workers_that_do_not_see_the_drivers_storage_say_so(job: Any, quick: list[str]) -> None:
    process = job.start(*quick, "--workers.num", "2")
    process.wait_for("starting the workers")
    (job.storage / process.run / "run.json").rename(job.folder / "elsewhere.json")
    assert process.end() == 1, process.output
    assert any("give a storage.path that all machines share" in line for line in process.lines), process.output
    assert statuses(job) == ["FAILED"]


CLUSTER_WITH_A_TENANT = """
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
tenant = ray.remote(num_cpus=1)(type("Tenant", (), {})).remote()
ray.get(tenant.__ray_ready__.remote())
print("address", ray.get_runtime_context().gcs_address, flush=True)
input()
ray.kill(tenant)
input()
"""


@pytest.fixture
def cluster(ray_environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A Ray with two CPUs of which a tenant has one, until a line is written; its first line names the address."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER_WITH_A_TENANT],
        env=ray_environment | OPEN,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    process.communicate()


@pytest.mark.drill
def test_a_busy_cluster_is_waited_for(job: Any, quick: list[str], cluster: subprocess.Popen[str]) -> None:
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    address = next(line for line in cluster.stdout if line.startswith("address ")).split()[1]
    # Ray Train gives up its attempt to place the workers every two seconds, and has to make many.
    impatient = {"RAY_ADDRESS": address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "2", **OPEN}
    process = job.start(*quick, "--training.epochs", "1", "--workers.num", "2", **impatient)
    process.wait_for("still waiting for the cluster")
    print(file=cluster.stdin, flush=True)
    assert process.end() == 0, process.output
    assert statuses(job) == ["FINISHED"]


def a_training_worker(driver: int) -> int:
    """Process id of one of the two training workers below the driver."""
    for child in psutil.Process(driver).children(recursive=True):
        if "RayTrainWorker" in " ".join(child.cmdline()):
            return int(child.pid)
    raise AssertionError("no training worker runs")


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_epochs_once(summary: dict[str, Any]) -> None:
    client = MlflowClient(summary["mlflow_uri"])
    for name in ("epoch", "validation/robust_accuracy"):
        steps = [metric.step for metric in client.get_metric_history(summary["mlflow_run_id"], name)]
        assert steps == list(range(7)), name
