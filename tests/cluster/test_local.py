"""The cluster of `make cluster`: three nodes on this machine, and jobs that join it or are submitted to it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
import ray
from clone import commit_all, copy_of_the_project
from mlflow import MlflowClient
from mlflow.entities import Run

pytestmark = [pytest.mark.ray, pytest.mark.drill]

TRAIN = """
jobs/train.py --recipe quickstart --data.limit 128 --training.epochs 1 --attack.steps 1 --validation.steps 1
--test.steps 1 --test.restarts 1 --stabilize.weight 0
""".split()


@dataclass
class Cluster:
    """The clone that starts it, its commit, and the environments of whoever starts it and of whoever joins it."""

    clone: Path
    commit: str
    outside: dict[str, str]
    environment: dict[str, str]
    line: str = ""
    runs: bool = False

    def up(self) -> None:
        """Start it, unless it runs."""
        if not self.runs:
            self.environment = self.outside
            started = self.run("cluster/local/cluster.py", "up")
            assert started.returncode == 0, started.stdout + started.stderr
            self.line, self.runs = started.stdout, True
            self.environment = {**self.outside, **dict(word.split("=", 1) for word in shlex.split(self.line)[1:])}

    def run(
        self, *arguments: str, program: str = sys.executable, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end, in the clone, what a user would type after that line."""
        return subprocess.run(
            [program, *arguments],
            cwd=self.clone,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def submit(self, *job: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Submit it by the script."""
        return self.run("cluster/submit.py", "--", "python", *job, **options)

    def ask(self, path: str) -> Any:
        """What the dashboard answers whoever has the token."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        address = self.environment["RAY_API_SERVER_ADDRESS"] + path
        with urlopen(Request(address, headers={"Authorization": f"Bearer {token}"}), timeout=30) as answer:
            return json.load(answer)

    def state(self, what: str) -> list[dict[str, Any]]:
        """What Ray's state API knows of its nodes, actors, ..."""
        found: list[dict[str, Any]] = self.ask(f"/api/v0/{what}?detail=True")["data"]["result"]["result"]
        return found

    def cpus(self) -> int:
        """Of a node that works."""
        return max(int(node["resources_total"].get("CPU", 0)) for node in self.state("nodes"))

    @cached_property
    def trained(self) -> tuple[Run, list[str], list[str]]:
        """The run of a training that was submitted, the nodes of its workers, and the head."""
        done = self.submit(*TRAIN, "--workers.num", "2", "--workers.cpus", str(self.cpus()))
        assert done.returncode == 0, done.stdout + done.stderr
        client = MlflowClient(f"sqlite:///{self.environment['HOME']}/distsens/runs/mlflow.db")
        (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        workers = [actor["node_id"] for actor in self.state("actors") if actor["class_name"] == "RayTrainWorker"]
        return run, workers, [node["node_id"] for node in self.state("nodes") if node["is_head_node"]]

    def processes(self) -> set[int]:
        """Ids of the living processes that say they belong to it."""
        found = set()
        for process in psutil.process_iter():
            try:
                if process.environ().get("DISTSENS_CLUSTER") == str(self.clone / ".cluster"):
                    found.add(process.pid)
            except psutil.Error:
                continue
        return found


@pytest.fixture(scope="module")
def cloned(ray_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("local")
    clone, home = folder / "clone", folder / "home"
    home.mkdir()
    copy_of_the_project(clone)
    commit = commit_all(clone)
    environment = {**ray_environment, "HOME": str(home), "PYTHONPATH": str(clone), "DISTSENS_COMMIT": "nobody's"}
    del environment["RAY_TMPDIR"]
    one = Cluster(clone, commit, environment, environment)
    try:
        yield one
    finally:
        one.run("cluster/local/cluster.py", "down")


@pytest.fixture
def cluster(cloned: Cluster) -> Cluster:
    """It runs."""
    cloned.up()
    return cloned


def test_it_is_a_head_without_work_and_two_workers_on_loopback(cluster: Cluster) -> None:
    nodes = cluster.state("nodes")
    assert len({node["node_id"] for node in nodes}) == 3
    assert {node["node_ip"].split(".")[0] for node in nodes} == {"127"}
    cpus = {node["is_head_node"]: node["resources_total"].get("CPU", 0) for node in nodes}
    assert cpus[True] == 0
    assert cpus[False] >= 1


def test_its_token_is_for_its_user_alone_and_whoever_has_none_is_refused(cluster: Cluster) -> None:
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o077 == 0
    assert token.read_text() not in cluster.line
    refused = cluster.submit("jobs/train.py", RAY_AUTH_MODE="disabled")
    assert refused.returncode == 2
    assert "the cluster asks for a token" in refused.stderr
    wrong = token.with_name("wrong")
    wrong.write_text("a-token-of-another-cluster-0123456789")
    refused = cluster.submit("jobs/train.py", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert refused.returncode == 2
    assert "the cluster has another token" in refused.stderr


def test_starting_it_again_starts_nothing_and_says_the_same(cluster: Cluster) -> None:
    before = {node["node_id"] for node in cluster.state("nodes")}
    again = cluster.run("cluster/local/cluster.py", "up")
    assert (again.returncode, again.stdout) == (0, cluster.line)
    assert {node["node_id"] for node in cluster.state("nodes")} == before


def test_a_job_that_has_the_printed_variables_joins_it(cluster: Cluster) -> None:
    refused = cluster.run(*TRAIN, "--workers.num", "50", "--workers.cpus", str(cluster.cpus()), "--dry-run")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "error: workers.num: got 50; the cluster has room for 2 workers" in refused.stderr


def test_a_submitted_training_tells_its_commit(cluster: Cluster) -> None:
    run, _, _ = cluster.trained
    assert (run.info.status, run.data.tags["distsens.commit"]) == ("FINISHED", cluster.commit)


def test_a_submitted_training_has_a_worker_on_each_node(cluster: Cluster) -> None:
    _, workers, heads = cluster.trained
    assert len(set(workers)) == len(workers) == 2
    assert not set(workers) & set(heads)


def test_the_exit_code_is_the_jobs(cluster: Cluster) -> None:
    wrong = cluster.submit("jobs/train.py", "--recipe", "quickstart", "--workers.num", "50", "--dry-run")
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert "error: workers.num: got 50; the cluster has room for" in wrong.stdout


def test_a_job_with_another_ray_than_the_clusters_says_which_they_are(cluster: Cluster) -> None:
    program = "import ray; ray.__version__ = '2.9.3'"
    program += "; import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    refused = cluster.run("-c", program, *TRAIN)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    said = rf"error: RAY_ADDRESS: .*: Version mismatch: .* Ray: {re.escape(ray.__version__)} .* Ray: 2\.9\.3 .*\n"
    assert re.fullmatch(said, refused.stderr)


def test_a_laptop_whose_python_is_of_another_patch_version_submits(cluster: Cluster) -> None:
    major, minor, patch = sys.version_info[:3]
    show = "import sys; print(*sys.version_info[:3])"
    for folder in os.get_exec_path():
        other = Path(folder) / f"python{major}.{minor}"
        if not other.exists():
            continue
        found = subprocess.run([str(other), "-c", show], capture_output=True, text=True, check=False).stdout.split()
        if found and found[2] != str(patch):
            break
    else:
        pytest.skip(f"there is no other patch version of Python {major}.{minor} on the PATH")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    both = os.pathsep.join([str(cluster.clone), packages])
    done = cluster.submit("-c", "import sys; print(sys.version_info[:3])", program=str(other), PYTHONPATH=both)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str((major, minor, patch)) in done.stdout


def test_ctrl_c_leaves_the_job_running_and_says_how_to_see_and_stop_it(cluster: Cluster) -> None:
    job = "import time; print('it runs', flush=True); time.sleep(600)"
    command = [sys.executable, "cluster/submit.py", "--", "python", "-c", job]
    with subprocess.Popen(
        command,
        cwd=cluster.clone,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = []
            while not lines or lines[-1] != "it runs\n":
                line = process.stdout.readline()
                assert line, "the job ended:\n" + "".join(lines)
                lines.append(line)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert re.fullmatch(r"the job goes on; follow it with: ray job logs --follow --address \S+ raysubmit_\w+\n", errors)
    stop = next(line for line in lines if line.startswith("stop it with: ray "))
    submission = stop.split()[-1]
    assert cluster.ask(f"/api/jobs/{submission}")["status"] == "RUNNING"
    ray_program = str(Path(sys.executable).with_name("ray"))
    stopped = cluster.run(*shlex.split(stop.removeprefix("stop it with: ray ")), program=ray_program)
    assert stopped.returncode == 0, stopped.stderr
    assert cluster.ask(f"/api/jobs/{submission}")["status"] == "STOPPED"


def test_ending_it_ends_its_processes_and_no_others(cluster: Cluster) -> None:
    """A test that comes after this one starts it anew."""
    assert cluster.processes()
    cluster.runs = False
    files = (cluster.clone / ".cluster" / "ray").resolve()
    with subprocess.Popen(
        ["sleep", "600"], env={**cluster.environment, "DISTSENS_CLUSTER": "/of/another/clone/.cluster"}
    ) as other:
        try:
            ended = cluster.run("cluster/local/cluster.py", "down")
            assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
            assert other.poll() is None
        finally:
            other.kill()
    assert not cluster.processes()
    assert not [line for line in command_lines() if str(files) in line]
    assert not files.exists()
    assert not (cluster.clone / ".cluster").exists()
    again = cluster.run("cluster/local/cluster.py", "down")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def command_lines() -> Iterator[str]:
    for process in psutil.process_iter():
        try:
            yield " ".join(process.cmdline())
        except psutil.Error:
            continue
