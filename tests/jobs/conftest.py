"""The jobs as a user runs them: processes of their own, with a small and quick experiment."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forks
import pytest
import ray
import safetensors.torch
import torch
from mlflow import MlflowClient
from processes import end_processes_with, processes_with
from torch.nn.functional import cross_entropy

from distsens.assembly import load_data
from distsens.attacks import Threat, pgd
from distsens.command_line import run_job
from distsens.experiment import Experiment
from distsens.models.lenet import lenet5

ROOT = Path(__file__).resolve().parents[2]
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
# Each epoch trains long enough for a test to act between two checkpoints.
QUICK = """
--recipe quickstart --data.limit 512 --data.augment crop --threat.eps 0.05 --training.epochs 6 --training.batch_size 32
--training.ema_decay 0.9 --attack.steps 3 --validation.steps 3 --test.steps 5 --test.restarts 1
--stabilize.weight 0.2 --stabilize.warmup_start 0 --stabilize.refresh_steps 5
""".split()


@dataclass
class Process:
    """A running job whose output is read as it comes."""

    popen: subprocess.Popen[str] | forks.Fork
    lines: list[str] = field(default_factory=list)

    def wait_for(self, start: str) -> str:
        """Read output up to the line that begins so."""
        stream = self.popen.stdout
        assert stream is not None
        for line in stream:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(start):
                return line
        raise AssertionError(f"the job ended without a line {start!r}:\n" + "\n".join(self.lines))

    def end(self) -> int:
        """Read the rest and return the exit code."""
        stream = self.popen.stdout
        assert stream is not None
        self.lines += stream.read().splitlines()
        return self.popen.wait(timeout=60)

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def run(self) -> str:
        """Name of the run, from the job's first lines."""
        return next(line.removeprefix("run ") for line in self.lines if line.startswith("run "))


@dataclass
class Job:
    """``python jobs/<script>`` with storage of its own, a folder unless a URL is given."""

    environment: dict[str, str]
    folder: Path
    script: str = "train.py"
    storage_url: str | None = None
    processes: list[Process] = field(default_factory=list)

    @property
    def storage(self) -> Path:
        return self.folder / "runs"

    def move(self) -> Path:
        """Rename the folder with all that has been left in it; its former path."""
        before = self.folder
        self.folder = before.rename(before.with_name(f"{before.name}-moved"))
        return before

    def start(self, *arguments: str, program: Sequence[str] = (), **environment: str) -> Process:
        """Start the job, or the program that stands for it, in a process group of its own."""
        storage = self.storage_url or str(self.storage)
        words = [*(program or [str(ROOT / "jobs" / self.script)]), *arguments, "--storage.path", storage]
        process = Process(forks.start(words, env={**self.environment, **environment}, cwd=self.folder))
        self.processes.append(process)
        return process

    def run(self, *arguments: str, **environment: str) -> Process:
        """Run the job to its end."""
        process = self.start(*arguments, **environment)
        process.end()
        return process

    def finish(self, *arguments: str, **environment: str) -> dict[str, Any]:
        """Run the job to a good end; its summary."""
        summary = self.folder / f"summary-{len(self.processes)}.json"
        process = self.run(*arguments, "--summary", str(summary), **environment)
        assert process.popen.returncode == 0, process.output
        result: dict[str, Any] = json.loads(summary.read_text())
        return result


@pytest.fixture
def run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a job in this process, in an empty folder, without a Ray; exit code, output, error output."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def run(script: str, *arguments: str) -> tuple[int, str, str]:
        specification = importlib.util.spec_from_file_location(f"{script}_job", ROOT / "jobs" / f"{script}.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, f"{script}_job", module)
        specification.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"jobs/{script}.py", *arguments])
        with pytest.raises(SystemExit) as exited:
            run_job(module.main)
        assert not ray.is_initialized()
        captured = capsys.readouterr()
        return int(exited.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeNet-5 of digits, adversarially trained for a moment, as a state dict of DataParallel."""
    dataset = load_data(Experiment())
    images, labels = dataset.train.tensors()
    pixels = images[slice(None)] / 255.0
    torch.manual_seed(0)
    network = lenet5(shape=dataset.shape, classes=10)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    threat = Threat("linf", 0.08)
    for _ in range(12):
        for rows in torch.randperm(len(labels)).split(64):
            twins = pgd(network, pixels[rows], labels[rows], threat, steps=3, step_size=threat.eps / 2)
            optimizer.zero_grad()
            cross_entropy(network(twins), labels[rows]).backward()
            optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "my net.safetensors"
    safetensors.torch.save_file({f"module.{name}": value for name, value in network.state_dict().items()}, path)
    return path


@pytest.fixture(scope="session")
def quick() -> list[str]:
    """Arguments of a small experiment that uses everything."""
    return list(QUICK)


@pytest.fixture(scope="session")
def make_job(
    request: pytest.FixtureRequest,
    ray_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    end_processes: Callable[[str], None],
) -> Iterator[Callable[..., Job]]:
    """Make jobs that are gone after the tests, whatever happened.

    They are forks that join a Ray that runs, and find an MLflow store without runs. One that is alone is started as
    a user's is (unless it is given the variables of forks), and starts and makes its own.
    """
    jobs: list[Job] = []
    empty_store = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{empty_store}").search_experiments()  # makes it, which takes each job seconds

    def make(script: str = "train.py", *, alone: bool = False) -> Job:
        environment = ray_environment if alone else request.getfixturevalue("running")
        job = Job(environment, tmp_path_factory.mktemp("job"), script)
        if not alone:
            job.storage.mkdir()
            shutil.copy(empty_store, job.storage / "mlflow.db")
        jobs.append(job)
        return job

    yield make
    for process in (process for job in jobs for process in job.processes):
        if process.popen.poll() is None:
            os.killpg(process.popen.pid, signal.SIGKILL)
            process.popen.wait()
    end_processes(ray_environment["RAY_TMPDIR"])


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Job:
    """A job that joins a Ray that runs."""
    return make_job()


@pytest.fixture
def lone_job(make_job: Callable[..., Job]) -> Job:
    """A job that starts a Ray of its own, in an empty folder."""
    return make_job(alone=True)


@pytest.fixture(scope="session")
def end_processes() -> Callable[[str], None]:
    """End the processes whose environment names a marker."""
    return end_processes_with


@pytest.fixture
def nothing_left(ray_environment: dict[str, str]) -> Callable[..., None]:
    """Assert that the processes of jobs that were alone, their Ray's included, end within seconds."""

    def check(*, but: tuple[str, ...] = ()) -> None:
        deadline = time.monotonic() + 60
        while left := [
            line for line in processes_with(ray_environment["RAY_TMPDIR"]).values() if not line.startswith(but)
        ]:
            assert time.monotonic() < deadline, "still running:\n" + "\n".join(left)
            time.sleep(0.5)

    return check


def _actors(running: dict[str, str]) -> dict[int, str]:
    """Processes of what jobs have started on the Ray that runs: command lines by process id."""
    found = processes_with(running[forks.SOCKET])  # a fork shows the environment of what it is a fork of
    # Ray Train's own that outlive a job: one of a cluster, one that asks the dashboard, which this Ray is without.
    idle = ("ray::IDLE", "ray::_AutoscalingCoordinatorActor", "ray::PlacementGroupCleaner", *RAY_AGENTS)
    return {process: line for process, line in found.items() if line.startswith("ray::") and not line.startswith(idle)}


@pytest.fixture
def process_of(running: dict[str, str]) -> Callable[[str], int]:
    """Process id of the one actor, or one of the actors, of that kind that a job has on the Ray that runs."""

    def find(kind: str) -> int:
        deadline = time.monotonic() + 60
        while not (found := [process for process, line in _actors(running).items() if kind in line]):
            assert time.monotonic() < deadline, _actors(running)
            time.sleep(0.1)
        return found[0]

    return find


@pytest.fixture
def no_actor_left(running: dict[str, str]) -> Callable[[], None]:
    """Assert that what jobs have started on the Ray that runs ends within seconds."""

    def check() -> None:
        deadline = time.monotonic() + 60
        while left := _actors(running):
            assert time.monotonic() < deadline, left
            time.sleep(0.2)

    return check
