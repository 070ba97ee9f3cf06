"""The scripts for bare machines: three hosts that share only a network, and what is refused before Ray starts."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hosts as namespaces
import pytest
from hosts import Host

from distsens.command_line import parse_flags
from distsens.distributed.cluster import check_capacity
from distsens.experiment import Experiment, load_recipe, merge

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "cluster" / "hosts"
BIN = Path(sys.executable).parent

RAY_HOSTS = ("head", "worker-1", "worker-2")
S3, MLFLOW = "http://s3:5000", "http://mlflow:5000"
TRAIN = """
jobs/train.py --recipe quickstart --data.limit 192 --training.epochs 1 --attack.steps 1 --validation.steps 1
--test.steps 1 --test.restarts 1 --stabilize.weight 0
""".split()
# What Ray's state API knows of nodes, actors, ...: it asks for the token.
STATE = """
import json, os, urllib.request
headers = {{"Authorization": "Bearer " + open(os.environ["RAY_AUTH_TOKEN_PATH"]).read()}}
request = urllib.request.Request("http://127.0.0.1:8265/api/v0/{}", headers=headers)
print(json.dumps(json.load(urllib.request.urlopen(request))["data"]["result"]["result"]))
"""


@dataclass
class Network:
    """The hosts, and the environment of their programs."""

    hosts: dict[str, Host]
    environment: dict[str, str]

    def of(self, name: str) -> dict[str, str]:
        """The environment on that host."""
        return {**self.environment, "HOME": str(self.hosts[name].home)}

    def start(self, name: str, *command: str, answers: str) -> None:
        self.hosts[name].start(*command, environment=self.of(name))
        self.hosts[name].wait_for(answers)

    def run(self, name: str, *command: str, timeout: float = 60, **more: str) -> str:
        """Run a program to its good end; its output."""
        done = self.hosts[name].run(*command, environment={**self.of(name), **more}, timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr + self.hosts[name].log.read_text()[-2000:]
        return done.stdout

    def ask(self, name: str, program: str, **more: str) -> Any:
        """What a few lines of Python print there as JSON."""
        return json.loads(self.run(name, sys.executable, "-c", program, **more).splitlines()[-1])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A Ray cluster on three hosts, started by the shipped scripts; an S3 server and MLflow, on a host each."""
    if why := namespaces.missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("network")
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {
        # As cluster/hosts/ray.env has it.
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_HEAD": "head",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "MLFLOW_TRACKING_URI": MLFLOW,
        "AWS_ENDPOINT_URL": S3,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        # Of tests.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "OMP_NUM_THREADS": "1",
    }
    with namespaces.joined([*RAY_HOSTS, "s3", "mlflow"], folder) as hosts:
        network = Network(hosts, environment)
        store = f"sqlite:///{hosts['mlflow'].home}/mlflow.db"
        server = ["mlflow", "server", "--host", "0.0.0.0", "--allowed-hosts", "mlflow:5000,127.0.0.1:5000"]
        server += ["--workers", "1", "--backend-store-uri", store]
        server += ["--artifacts-destination", str(hosts["mlflow"].home / "artifacts")]
        health = "http://127.0.0.1:52365/api/healthz"
        ray = ["--num-cpus", "1", "--object-store-memory", str(200 << 20)]
        network.start("s3", "moto_server", "--host", "0.0.0.0", "--port", "5000", answers="http://127.0.0.1:5000")
        network.start("head", str(SCRIPTS / "head.sh"), *ray, answers=health)
        for name in RAY_HOSTS[1:]:
            network.start(name, str(SCRIPTS / "worker.sh"), *ray, answers=health)
        network.start("mlflow", *server, answers="http://127.0.0.1:5000/health")
        network.run("s3", sys.executable, "-c", "import boto3; boto3.client('s3').create_bucket(Bucket='bucket')")
        yield network


@pytest.mark.drill
@pytest.mark.ray
def test_a_submitted_training_runs_on_three_hosts_with_its_storage_and_its_tracking_on_two_others(
    network: Network,
) -> None:
    client = {"RAY_AUTH_MODE": "token"}
    job = [*TRAIN, "--workers.num", "3", "--storage.path", "s3://bucket/runs"]
    options = ["--address", "http://127.0.0.1:8265", "--runtime-env", "cluster/runtime_env.yaml"]
    said = network.run("head", "ray", "job", "submit", *options, "--", "python", *job, timeout=240, **client)
    (name,) = re.findall(r"^run (\S+)", said, re.MULTILINE)

    nodes = network.ask("head", STATE.format("nodes"))
    addresses = {node["node_id"]: node["node_ip"] for node in nodes}
    assert set(addresses.values()) == {network.hosts[host].address for host in RAY_HOSTS}
    actors = network.ask("head", STATE.format("actors"))
    workers = [addresses[actor["node_id"]] for actor in actors if actor["class_name"] == "RayTrainWorker"]
    assert sorted(workers) == sorted(addresses.values())

    stored = network.ask(
        "s3",
        "import boto3, json\n"
        "pages = boto3.client('s3').get_paginator('list_objects_v2').paginate(Bucket='bucket')\n"
        "print(json.dumps([one['Key'] for page in pages for one in page['Contents']]))",
    )
    assert {f"runs/{name}/checkpoints/epoch-0001/{file}" for file in ("model.safetensors", "state.pt")} <= set(stored)
    assert f"runs/models/{name}/model.safetensors" in stored

    tracked = network.ask(
        "mlflow",
        "import json, mlflow\n"
        f"client = mlflow.MlflowClient({'http://127.0.0.1:5000'!r})\n"
        "(run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])\n"
        "print(json.dumps([run.info.status, run.data.tags['distsens.workers'], list(run.data.metrics)]))",
    )
    status, workers_tag, metrics = tracked
    assert (status, workers_tag) == ("FINISHED", "3")
    assert {"validation/robust_accuracy", "test/pgd_accuracy"} <= set(metrics)

    # Gradients went over the network: more than a model of a few hundred thousand parameters, on each host.
    for host in RAY_HOSTS:
        received = int(network.run(host, "cat", "/sys/class/net/eth0/statistics/rx_bytes"))
        assert received > 1_000_000


# Slurm's own where there is one machine; what is for the other one is left to the test, which has its hands there.
SRUN = """#!/bin/bash
while [[ $1 = --* ]]; do
    case $1 in
        --overlap | --nodes=1 | --ntasks=1 | --cpu-bind=none | --cpus-per-task=2) ;;
        --nodelist=machine-1) here=yes ;;
        --exclude=machine-1) here=no ;;
        *) exit 64 ;;
    esac
    shift
done
if [ "$here" = yes ]; then exec "$@"; fi
env -0 > "$STEP/environment"
printf '%s' "$1" > "$STEP/command"
exec sleep infinity
"""
SCONTROL = """#!/bin/bash
[ "$*" = "show hostnames machine-[1-2]" ] && printf 'machine-1\\nmachine-2\\n'
"""


@pytest.mark.drill
@pytest.mark.ray
def test_a_job_of_slurm_brings_its_cluster_along(tmp_path: Path) -> None:
    if why := namespaces.missing():
        pytest.skip(why)
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    for name in ("home", "step"):
        (tmp_path / name).mkdir()
    environment = {
        "PATH": f"{tmp_path}:{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(tmp_path / "home"),  # shared, as with Slurm
        "STEP": str(tmp_path / "step"),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "17",
        "SLURM_CPUS_ON_NODE": "2",
        "SLURM_JOB_NODELIST": "machine-[1-2]",
    }
    storage = ("--storage.path", str(tmp_path / "runs"), "--summary", str(tmp_path / "summary.json"))
    # A worker that takes all CPUs of a machine: each is on one of its own.
    workers = ("--workers.num", "2", "--workers.cpus", str(os.cpu_count()))
    with namespaces.joined(["machine-1", "machine-2"], tmp_path) as hosts:
        first, second = hosts.values()
        batch = first.start(str(SCRIPTS / "slurm.sh"), *TRAIN, *workers, *storage, environment=environment)
        deadline = time.monotonic() + 120
        while not (tmp_path / "step" / "command").exists():
            assert batch.poll() is None, first.log.read_text()
            assert time.monotonic() < deadline, first.log.read_text()
            time.sleep(0.2)
        variables = (tmp_path / "step" / "environment").read_text().rstrip("\0").split("\0")
        step = (tmp_path / "step" / "command").read_text()
        second.start(step, environment=dict(variable.split("=", 1) for variable in variables))
        assert batch.wait(timeout=240) == 0, first.log.read_text() + second.log.read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["workers"]) == ("finished", 2)
    assert not list((tmp_path / "home").glob(".ray-token*"))


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that is set up as it should be."""
    token = tmp_path / "token"
    token.write_text("a-token")
    token.chmod(0o600)
    path = f"{BIN}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(tmp_path), "RAY_HEAD": "127.0.0.1", "RAY_AUTH_TOKEN_PATH": str(token)}


@pytest.mark.parametrize("script", ["head.sh", "worker.sh"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"PATH": "/usr/bin:/bin"}, "error: PATH: no ray on it"),
        ({"RAY_HEAD": ""}, "error: RAY_HEAD: not set"),
        ({"RAY_AUTH_TOKEN_PATH": "/nonexistent"}, "error: RAY_AUTH_TOKEN_PATH: no token in /nonexistent"),
        ({"RAY_AUTH_TOKEN_PATH": ""}, "error: RAY_AUTH_TOKEN_PATH: no token in "),
    ],
)
def test_a_node_is_not_started_when_something_is_missing(
    outside: dict[str, str], script: str, change: dict[str, str], says: str
) -> None:
    refused(script, {**outside, **change}, says)


@pytest.mark.parametrize("script", ["head.sh", "worker.sh"])
def test_a_token_that_others_may_read_is_refused(outside: dict[str, str], script: str) -> None:
    os.chmod(outside["RAY_AUTH_TOKEN_PATH"], 0o640)
    refused(script, outside, "error: RAY_AUTH_TOKEN_PATH: others may read ")


def test_a_head_that_nobody_knows_is_refused(outside: dict[str, str]) -> None:
    refused(
        "head.sh",
        {**outside, "RAY_HEAD": "nobody.invalid"},
        "error: RAY_HEAD: this machine knows no address of nobody.invalid",
    )


def refused(script: str, environment: Mapping[str, str], says: str) -> None:
    command = ["bash", str(SCRIPTS / script)]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1


def test_the_example_for_slurm_says_all_that_its_recipe_needs_and_fits_its_machines() -> None:
    script = (SCRIPTS / "slurm.sh").read_text()
    (example,) = re.findall(r"sbatch (.*?)\n#\n", script.replace("\\\n#", ""), re.DOTALL)
    options, _, job = example.partition("cluster/hosts/slurm.sh ")
    machines, gpus = map(int, re.findall(r"\d+", options))
    (cores,) = map(int, re.findall(r"GPUs and (\d+) cores", script))
    program, *words = job.split()
    flags = parse_flags(words)
    recipe = load_recipe(flags.pop("recipe"), [ROOT / "jobs" / "recipes"])
    experiment = Experiment.parse(merge(recipe, flags))
    assert (ROOT / program).is_file()
    assert experiment.data.name == "folder"
    assert experiment.data.root == "/shared/imagenet"
    nodes = [{"CPU": float(cores), "GPU": float(gpus)}] * machines
    check_capacity(experiment.workers, nodes, "the job", experiment.data.decoding_cpus)


def test_shellcheck_finds_nothing_in_the_scripts() -> None:
    done = shellcheck(*map(str, sorted(SCRIPTS.glob("*.sh"))))
    assert done.returncode == 0, done.stdout


def test_shellcheck_finds_a_planted_mistake(tmp_path: Path) -> None:
    script = tmp_path / "slurm.sh"
    script.write_text((SCRIPTS / "slurm.sh").read_text().replace('cd "$SLURM_SUBMIT_DIR"', "cd $SLURM_SUBMIT_DIR"))
    assert "SC2086" in shellcheck(str(script)).stdout


def shellcheck(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("shellcheck", path=f"{BIN}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed")
    command = [program, "--external-sources", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("unit", ["ray-head.service", "ray-worker.service"])
def test_systemd_finds_nothing_in_the_units(tmp_path: Path, unit: str) -> None:
    assert verified(tmp_path / unit, (SCRIPTS / unit).read_text()) == ""


@pytest.mark.parametrize("unit", ["ray-head.service", "ray-worker.service"])
def test_rays_files_outlive_the_unit_and_are_not_for_all(unit: str) -> None:
    settings = re.findall(r"^(\w+)=(.*)$", (SCRIPTS / unit).read_text(), re.MULTILINE)
    assert {("StateDirectory", "distsens"), ("StateDirectoryMode", "0750")} <= set(settings)
    (command,) = (value for key, value in settings if key == "ExecStart")
    folder = command.partition(" --temp-dir ")[2].replace("${STATE_DIRECTORY}", "/var/lib/distsens")
    assert Path(folder).parent == Path("/var/lib/distsens")
    # What Ray puts below it, with the longest number of a process; no socket's path has more than 107 characters.
    assert len(f"{folder}/session_2026-01-02_03-04-05_678901_4194304/sockets/plasma_store") <= 107


def test_systemd_finds_planted_mistakes(tmp_path: Path) -> None:
    unit = (SCRIPTS / "ray-head.service").read_text()
    assert "Unknown key" in verified(tmp_path / "a.service", unit.replace("RestartSec", "RestartSeconds"))
    assert "not executable" in verified(tmp_path / "b.service", unit.replace("head.sh", "heads.sh"))


def verified(path: Path, unit: str) -> str:
    """What systemd says of the unit, given that the clone lies where it should."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    path.write_text(unit.replace("/opt/distsens", str(ROOT)))
    command = ["systemd-analyze", "verify", "--man=no", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr
