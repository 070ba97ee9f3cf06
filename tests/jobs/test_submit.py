"""The training and evaluation jobs submitted to a running Ray cluster, from a clean clone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clone import copy_of_the_project
from mlflow import MlflowClient
from mlflow.entities import Run
from processes import free_ports

from distsens.distributed.gauges import LAST_CHECKPOINT, OF_EPOCHS

BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.ray, pytest.mark.drill]


@dataclass
class Head:
    """A Ray head on loopback, and what a client needs to submit jobs to it."""

    environment: dict[str, str]
    address: str
    dashboard: str
    metrics: str
    clone: Path
    home: Path
    folder: Path

    def ray(self, *arguments: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "ray"), *arguments],
            cwd=self.clone,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def submit(
        self,
        *arguments: str,
        wait: bool = True,
        script: str = "train.py",
        options: Sequence[str] = (),
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """``ray job submit --working-dir . -- python jobs/train.py ...`` in the clean clone."""
        options = ["--address", self.dashboard, "--working-dir", ".", *([] if wait else ["--no-wait"]), *options]
        return self.ray("job", "submit", *options, "--", "python", f"jobs/{script}", *arguments, **environment)

    def runs(self) -> list[Run]:
        """In the store that a submitted job uses by default, newest first."""
        store = self.home / "distsens" / "runs" / "mlflow.db"
        if not store.exists():
            return []
        client = MlflowClient(f"sqlite:///{store}")
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(experiments, order_by=["attributes.start_time DESC"]))

    def statuses(self) -> list[str]:
        """Of these runs."""
        return [run.info.status for run in self.runs()]

    def told_by_workers(self, run: str) -> list[dict[str, Any]]:
        """The lines of a run in the logs of Ray's workers."""
        logs = [path.read_text(errors="replace") for path in self.folder.glob("ray/session_latest/logs/worker-*.err")]
        lines = [json.loads(line) for log in logs for line in log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["run"] == run]


@dataclass
class Guarded:
    """A head that asks for a token, and the token."""

    head: Head
    secret: str


@pytest.fixture
def short(quick: list[str]) -> list[str]:
    """An experiment of two epochs."""
    return [*quick, "--training.epochs", "2"]


@contextmanager
def head(
    environment: dict[str, str], folder: Path, end_processes: Callable[[str], None], **extra: str
) -> Iterator[Head]:
    """Start a head, and stop its processes, and no other Ray's, at the end."""
    clone, home = folder / "clone", folder / "home"
    home.mkdir()
    copy_of_the_project(clone)
    port, dashboard, agent, metrics = free_ports(4)
    sockets = tempfile.mkdtemp(prefix="ds-", dir="/tmp")  # short, as Ray puts sockets there
    environment = {
        **environment,
        "RAY_TMPDIR": sockets,
        "HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{environment['PATH']}",
        **extra,
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", str(port)]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--num-cpus", "2"]
    command += ["--dashboard-agent-listen-port", str(agent), "--disable-usage-stats"]
    command += ["--metrics-export-port", str(metrics)]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=home, start_new_session=True)
    one = Head(
        environment,
        f"127.0.0.1:{port}",
        f"http://127.0.0.1:{dashboard}",
        f"http://127.0.0.1:{metrics}/metrics",
        clone,
        home,
        Path(sockets),
    )
    try:
        deadline = time.monotonic() + 90
        # Only a job that ran proves that the dashboard, its agent and the job manager are all up.
        while one.ray("job", "submit", "--address", one.dashboard, "--", "python", "-c", "pass").returncode != 0:
            assert process.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(1)
        yield one
    finally:
        process.kill()  # Asked to end, it takes half a minute; its processes are ended here.
        process.wait()
        end_processes(sockets)
        shutil.rmtree(sockets, ignore_errors=True)


@pytest.fixture(scope="module")
def guarded(
    ray_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory, end_processes: Callable[[str], None]
) -> Iterator[Guarded]:
    """A head that asks for a token."""
    folder = tmp_path_factory.mktemp("guarded")
    token = folder / "token"
    token.write_text(secret := "a-token-of-32-characters-or-more-0123456789")
    token.chmod(0o600)
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    with head(ray_environment, folder, end_processes, **variables) as one:
        yield Guarded(one, secret)


def test_without_the_token_nobody_submits(guarded: Guarded, short: list[str]) -> None:
    before = guarded.head.statuses()
    refused = guarded.head.submit(*short, RAY_AUTH_TOKEN_PATH="/nonexistent", RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert guarded.head.statuses() == before


@pytest.fixture(scope="module")
def trained(guarded: Guarded, quick: list[str]) -> tuple[subprocess.CompletedProcess[str], Run]:
    """A training that was submitted: what is seen of it, and its run."""
    variables = json.dumps({"env_vars": {"DISTSENS_COMMIT": "c0ffee"}})  # Ray uploads no .git
    done = guarded.head.submit(*quick, "--training.epochs", "2", options=["--runtime-env-json", variables])
    assert done.returncode == 0, done.stdout + done.stderr
    return done, guarded.head.runs()[0]


def test_a_submitted_job_succeeds_as_the_training_does_and_tells_its_commit_and_no_token(
    guarded: Guarded, trained: tuple[subprocess.CompletedProcess[str], Run]
) -> None:
    done, run = trained
    assert "PGD-5" in done.stdout
    assert guarded.secret not in done.stdout + done.stderr
    assert run.info.status == "FINISHED"
    assert (run.data.tags["distsens.commit"], run.data.tags["mlflow.source.git.commit"]) == ("c0ffee", "c0ffee")
    told = guarded.head.told_by_workers(str(run.info.run_name))
    epochs = {(line["rank"], line["epoch"]) for line in told if line["message"] == "epoch"}
    assert epochs == {(rank, epoch) for rank in (0, 1) for epoch in (0, 1, 2)}


def test_a_submitted_evaluation_judges_the_best_and_the_last_of_a_training(
    guarded: Guarded, trained: tuple[subprocess.CompletedProcess[str], Run]
) -> None:
    cluster, (_, run) = guarded.head, trained
    storage, summary = cluster.home / "distsens" / "runs", cluster.home / "summary.json"
    model = storage / str(run.info.run_name)
    effort = ("--data.limit", "8", "--pgd.steps", "2", "--pgd.restarts", "1", "--workers.num", "2", "--shard", "4")
    judged = cluster.submit(
        *("--model", f"{model}#best", f"{model}#last", "--attacks", "pgd", "transfer", "--transfer", f"{model}#last"),
        *(*effort, "--summary", str(summary)),
        script="evaluate.py",
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr
    result = json.loads(summary.read_text())
    assert result["over_models"] == {}, "the best and the last of one training"
    both = result["models"]
    assert [one["model"]["address"] for one in both] == [f"{model}#best", f"{model}#last"]
    assert {one["storage"] for one in both} == {path.as_uri() for path in storage.glob("evaluate-*")}
    assert [list(one["after_attack"]) for one in both] == [["pgd", "transfer"]] * 2
    assert all(one["judged"] == 8 for one in both)
    for one in both:
        told = cluster.told_by_workers(one["run"])
        assert [(line["message"], line["images"]) for line in told] == [("judging", 4)] * 2
        assert {line["first_image"] for line in told} == {0, 4}


def test_a_submitted_job_that_the_cluster_can_never_hold_fails_and_leaves_no_run(
    guarded: Guarded, short: list[str]
) -> None:
    before = guarded.head.statuses()
    too_many = guarded.head.submit(*short, "--workers.num", "5")
    assert too_many.returncode != 0
    assert "error: workers.num: got 5; the cluster has room for 2 workers of 1 CPU each" in too_many.stdout
    dry = guarded.head.submit(*short, "--workers.num", "5", "--dry-run")
    assert dry.returncode != 0
    assert "the cluster has room for 2 workers" in dry.stdout
    assert guarded.head.statuses() == before


def test_a_submitted_job_fails_as_the_training_does(guarded: Guarded, short: list[str]) -> None:
    failed = guarded.head.submit(*short, "--training.optimizer", "sgd", "--training.lr", "1e20")
    assert failed.returncode != 0
    assert "failed: the loss or its gradient became NaN" in failed.stdout
    assert guarded.head.statuses()[0] == "FAILED"


def test_a_submitted_job_that_is_stopped_leaves_a_run_that_can_be_resumed(guarded: Guarded, quick: list[str]) -> None:
    cluster = guarded.head
    long = cluster.submit(*quick, "--training.epochs", "500", wait=False)
    assert long.returncode == 0, long.stdout + long.stderr
    job = re.search(r"raysubmit_\w+", long.stdout)
    assert job is not None
    wait_for(lambda: "epoch   1" in cluster.ray("job", "logs", "--address", cluster.dashboard, job[0]).stdout, 120)
    running = f'run="{cluster.runs()[0].info.run_name}"'
    names = [*OF_EPOCHS, LAST_CHECKPOINT]
    wait_for(lambda: set(names) == {name for name, value in gauges(cluster, running).items() if value > 0}, 60)
    stopped = cluster.ray("job", "stop", "--address", cluster.dashboard, job[0])
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    wait_for(lambda: cluster.statuses()[0] == "KILLED", 40)
    # With the places of both its workers free again, and itself in order.
    name = cluster.runs()[0].info.run_name
    checked = cluster.submit("--resume", name, "--dry-run")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    wait_for(lambda: "0.0/2.0 CPU" in cluster.ray("status", "--address", cluster.address).stdout, 60)


def gauges(cluster: Head, run: str) -> dict[str, float]:
    """What Prometheus would read of a run's gauges from the head, by name."""
    with urllib.request.urlopen(cluster.metrics, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {
        line.partition("{")[0].removeprefix("ray_"): float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("ray_distsens_") and run in line
    }


def wait_for(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(1)
