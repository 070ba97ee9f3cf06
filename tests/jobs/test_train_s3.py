"""The training job with its storage on a real S3 server."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ceph_server import S3Server
from mlflow import MlflowClient
from running_ray import running_ray

from distsens.storage import Checkpoints, open_place, published

pytestmark = [pytest.mark.ray, pytest.mark.drill]


@pytest.fixture
def ray_of_ceph(forked: dict[str, str], ceph: S3Server) -> Iterator[dict[str, str]]:
    """Environment of a job that joins a Ray with the job's own AWS variables."""
    with running_ray({**forked, **ceph.environment}, cpus=2) as environment:
        yield environment


def test_a_run_in_a_bucket_is_killed_resumed_and_published_and_tells_nobody_the_secret(
    lone_job: Any,
    quick: list[str],
    ceph: S3Server,
    use_s3: Callable[[Mapping[str, str]], str],
    ray_of_ceph: dict[str, str],
) -> None:
    job = lone_job
    job.storage_url = f"{use_s3(ceph.environment)}/team/runs"
    job.environment = ray_of_ceph
    storage = open_place(job.storage_url)
    first = job.start(*quick, "--workers.num", "2")
    first.wait_for("epoch   2")
    first.popen.send_signal(signal.SIGKILL)
    first.end()
    assert f"storage {job.storage_url}/{first.run}" in first.lines
    assert storage.keys("models") == []

    summary = job.finish("--resume", f"{job.storage_url}/{first.run}", "--workers.num", "1")
    assert (summary["run"], summary["status"], summary["epochs"]) == (first.run, "finished", 6)
    assert any(line.startswith("resumed after epoch") for line in job.processes[-1].lines)
    best = Checkpoints(storage.child(first.run)).load(summary["best_epoch"])
    assert summary["published"] == f"{job.storage_url}/models/{first.run}"
    model = published.fetch(summary["published"])
    assert model.files["model.safetensors"] == best.files["model.safetensors"]
    assert model.manifest.metrics["test/pgd_accuracy"] == summary["test"]["pgd_accuracy"]
    stored = {key.split("/")[1] for key in storage.keys(first.run)}
    assert stored == {"run.json", "checkpoints", "sensitivity"}

    # A bucket holds no SQLite file: runs are tracked in the folder that they would be in by default.
    assert summary["mlflow_uri"] == f"sqlite:///{job.folder}/runs/mlflow.db"
    client = MlflowClient(summary["mlflow_uri"])
    steps = [metric.step for metric in client.get_metric_history(summary["mlflow_run_id"], "epoch")]
    assert steps == list(range(7))

    searched = {
        "output": ([process.output.encode() for process in job.processes], b"sensitivity on validation"),
        "Ray": (contents_of(Path(job.environment["RAY_TMPDIR"])), b"RayTrainWorker"),
        "MLflow": (contents_of(job.folder), summary["mlflow_run_id"].encode()),
        "bucket": ([storage.get(key) for key in storage.keys("")], job.storage_url.encode()),
    }
    for where, (contents, known) in searched.items():
        assert any(known in content for content in contents), f"the search does not see {where}"
        assert not any(ceph.secret_key.encode() in content for content in contents), where


def contents_of(folder: Path) -> list[bytes]:
    """Of every file below the folder; sockets and pipes hold none."""
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


def test_a_wrong_secret_ends_the_job_before_anything_starts(
    lone_job: Any,
    quick: list[str],
    ceph: S3Server,
    use_s3: Callable[[Mapping[str, str]], str],
    forked: dict[str, str],
) -> None:
    job = lone_job
    job.storage_url = use_s3(ceph.environment)
    process = job.run(*quick, **{**forked, **ceph.environment, "AWS_SECRET_ACCESS_KEY": "wr0ngsecret"})
    assert process.popen.returncode == 2
    assert process.lines == [
        f"error: storage.path: got '{job.storage_url}'; access denied: the secret key is not the one of the access key"
    ]
    assert not list(job.folder.iterdir())
