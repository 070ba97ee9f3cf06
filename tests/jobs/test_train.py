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
import pytest
import safetensors.torch
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

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
    job: Any, quick: list[str], finished: tuple[Any, dict[str, Any]], process_of: Callable[[str], int]
) -> None:
    _, undisturbed = finished
    process = job.start(*quick, "--workers.num", "2", "--summary", "summary.json")
    process.wait_for("epoch   3")
    os.kill(process_of("RayTrainWorker"), signal.SIGKILL)
    assert process.end() == 0, process.output
    assert "resumed after epoch" in process.output
    result = json.loads((job.folder / "summary.json").read_text())
    assert_same_weights(weights(result), weights(undisturbed))
    assert result["test"] == undisturbed["test"]
    assert statuses(job) == ["FINISHED"]
    assert_epochs_once(result)


@pytest.mark.drill
def test_a_driver_killed_and_resumed_changes_nothing_and_its_ray_ends(
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
    make_job: Callable[..., Any],
    quick: list[str],
    number: signal.Signals,
    nothing_left: Callable[..., None],
    no_actor_left: Callable[[], None],
    running: dict[str, str],
) -> None:
    alone = number == signal.SIGTERM  # its Ray is its own, and ends with it
    job = make_job(alone=alone)
    process = job.start(*quick, "--workers.num", "2", "--summary", "summary.json")
    process.wait_for("epoch   2")
    os.killpg(process.popen.pid, number)
    assert process.end() == 128 + number, process.output
    hint = next(line for line in process.lines if line.startswith("resume with: "))
    said = hint.removeprefix("resume with: python jobs/train.py --resume ")
    assert said == str(job.storage / process.run)
    assert "Traceback" not in process.output
    assert "Ray instance" not in process.output, "it starts one, and says nothing of it"
    assert statuses(job) == ["KILLED"]
    assert json.loads((job.folder / "summary.json").read_text())["status"] == "interrupted"
    if alone:
        nothing_left()
    else:
        no_actor_left()
    assert Checkpoints(open_place(str(job.storage / process.run))).newest().checkpoint is not None
    if alone:
        before = job.move()
        moved = str(job.storage / process.run)
        resumed = job.finish("--resume", moved, "--workers.num", "1", **running)
        assert (resumed["epochs"], resumed["workers"]) == (6, 1)
        assert statuses(job) == ["FINISHED"]
        assert not before.exists(), sorted(before.rglob("*"))
        logged = job.storage / "artifacts" / resumed["mlflow_run_id"] / "artifacts"
        names = {path.name for path in logged.iterdir()}
        assert {"experiment.yaml", "sensitivity", "weights", "checkpoint.json"} <= names, "of before and of after"


@pytest.mark.drill
def test_a_run_whose_controller_is_killed_fails_in_one_line_and_can_be_resumed(
    job: Any, quick: list[str], process_of: Callable[[str], int], no_actor_left: Callable[[], None]
) -> None:
    process = job.start(*quick)
    process.wait_for("epoch   1")
    os.kill(process_of("TrainController"), signal.SIGKILL)
    assert process.end() == 1, process.output
    failed, hint = process.lines[-2:]
    assert failed.startswith("failed: Ray: ")
    assert hint.startswith("resume with: ")
    assert "Traceback" not in process.output
    assert statuses(job) == ["FAILED"]
    no_actor_left()


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


def test_a_failing_worker_fails_the_run_and_says_why_and_has_a_thread_for_each_core(job: Any, quick: list[str]) -> None:
    (job.folder / "fragile.py").write_text(
        "import torch, torch.distributed as dist\n"
        "class Fragile(torch.nn.Module):\n"
        "    def __init__(self, shape, classes):\n"
        "        super().__init__()\n"
        "        self.hidden = torch.nn.Linear(shape[1] * shape[2], 16)\n"
        "        self.out = torch.nn.Linear(16, classes)\n"
        "    def forward(self, x):\n"
        "        if self.training and dist.is_initialized():\n"  # and so not before the workers are there
        f"            open({str(job.folder / 'attempts')!r}, 'a').write('x')\n"
        "            raise RuntimeError(f'never trains on {torch.get_num_threads()} threads')\n"
        "        return self.out(self.hidden(x.flatten(1)).relu())\n"
        "def build(*, shape, classes):\n"
        "    return Fragile(shape, classes)\n"
    )
    alone = "--workers.num 1 --workers.cpus 2 --workers.max_failures 2"
    process = job.run(*quick, "--model.name", "fragile:build", *alone.split())
    assert process.popen.returncode == 1, process.output
    assert any(line.startswith("failed:") and "never trains on 2 threads" in line for line in process.lines), (
        process.output
    )
    assert (job.folder / "attempts").read_text() == "x", "an error that would come again is not tried again"
    assert statuses(job) == ["FAILED"]


TENANT = """
import ray
ray.init(log_to_driver=False)
tenant = ray.remote(num_cpus=2)(type("Tenant", (), {})).remote()
ray.get(tenant.__ray_ready__.remote())
print("there", flush=True)
input()
"""


@pytest.fixture
def tenant(running: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Another user of the Ray that runs, who has two of its three cores until a line is written to him."""
    process = subprocess.Popen(
        [sys.executable, "-c", TENANT], env=running, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    yield process
    process.communicate()


@pytest.mark.drill
def test_a_busy_cluster_is_waited_for(job: Any, quick: list[str], tenant: subprocess.Popen[str]) -> None:
    assert tenant.stdin is not None
    # Ray Train gives up its attempt to place the workers every two seconds, and has to make many.
    impatient = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "2"}
    process = job.start(*quick, "--training.epochs", "1", "--workers.num", "2", **impatient)
    process.wait_for("still waiting for the cluster")
    print(file=tenant.stdin, flush=True)
    assert process.end() == 0, process.output
    assert statuses(job) == ["FINISHED"]


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_epochs_once(summary: dict[str, Any]) -> None:
    client = MlflowClient(summary["mlflow_uri"])
    for name in ("epoch", "validation/robust_accuracy"):
        steps = [metric.step for metric in client.get_metric_history(summary["mlflow_run_id"], name)]
        assert steps == list(range(7)), name
