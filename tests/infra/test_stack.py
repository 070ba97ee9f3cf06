"""The stack that `make stack` starts, and the jobs that are submitted to it.

Runs are in PostgreSQL, files in S3, and secrets nowhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import boto3
import ceph
import forks
import postgres
import psutil
import pytest
import stack as stack_module
import tracking_server
from ceph import Ceph
from daemons import Daemons, StackError
from postgres import Postgres
from ray.job_submission import JobSubmissionClient

from distsens.distributed.gauges import LAST_CHECKPOINT, OF_EPOCHS
from distsens.distributed.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
QUICK = """
--recipe quickstart --data.limit 256 --training.epochs 2 --attack.steps 2 --validation.steps 2 --test.steps 2
--test.restarts 1 --workers.num 2
""".split()
BUCKET = "s3://distsens"
STORAGE = ("--storage.path", f"{BUCKET}/runs")
# In the environment of whoever starts the stack, and so of every job.
PLANTED = {"HUB_TOKEN": "planted-t0ken-7f3a", "DATABASE_URL": "postgresql://planted:planted-passw0rd-91bc@db/x"}

pytestmark = pytest.mark.timeout(900)


def needs(*missing: str) -> None:
    if missing:
        pytest.skip(f"the stack's parts are not installed: no {', '.join(missing)}")


@dataclass
class Job:
    """A submitted job that has ended."""

    code: int | None
    output: str

    @property
    def run(self) -> str:
        found = re.search(r"^run (\S+)$", self.output, re.MULTILINE)
        assert found is not None, self.output
        return found[1]


@dataclass
class Stack:
    """A stack, and the trainings that were submitted to it."""

    folder: Path
    ports: dict[str, int]
    environment: dict[str, str]
    clone: Path
    forks: str
    said: str = ""
    runs: bool = False

    def up(self) -> None:
        """Start it, unless it runs."""
        if not self.runs:
            done = self.script("up", "--cpus", "1")
            assert done.returncode == 0, done.stdout + done.stderr
            self.said, self.runs = done.stdout, True

    def script(self, *words: str) -> subprocess.CompletedProcess[str]:
        line = command(self.folder, self.ports, *words)
        return subprocess.run(line, env=self.environment, capture_output=True, text=True, check=False)

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``ray job``, with what the stack's script sets."""
        line = ["sh", "-c", f'. {self.folder}/client.sh && exec {BIN}/ray job "$@"', "sh", *words]
        return subprocess.run(line, cwd=self.clone, env=self.environment, capture_output=True, text=True, check=False)

    @cached_property
    def jobs(self) -> JobSubmissionClient:
        headers = {"Authorization": f"Bearer {self.secret('ray-token')}"}
        return JobSubmissionClient(f"http://127.0.0.1:{self.ports['dashboard']}", headers=headers)

    def submit(self, *words: str) -> str:
        """Submit ``python WORDS``; the job's id. Its workers are forks, and there many seconds sooner."""
        environment = {
            "working_dir": str(self.clone),
            "py_executable": shlex.join([sys.executable, "-I", forks.__file__, self.forks]),
            "env_vars": {"RAY_metrics_report_interval_ms": "1000"},  # else a training goes on for tens of seconds
        }
        return self.jobs.submit_job(entrypoint=shlex.join(["python", *words]), runtime_env=environment)

    def run(self, *words: str) -> Job:
        """Submit it, as a fork itself, and wait for its end."""
        job = self.submit(forks.__file__, self.forks, *words)
        wait_for(lambda: self.has_ended(job), seconds=240)
        return Job(self.jobs.get_job_info(job).driver_exit_code, self.jobs.get_job_logs(job))

    @cached_property
    def trained(self) -> Job:
        """A training that was submitted from a shell, in the script's environment."""
        variables = json.dumps({"env_vars": {"DISTSENS_COMMIT": "c0ffee"}})  # Ray uploads no .git
        options = ("--working-dir", ".", "--runtime-env-json", variables)
        done = self.ray("submit", *options, "--", "python", "jobs/train.py", *QUICK, *STORAGE)
        assert done.returncode == 0, done.stdout + done.stderr
        return Job(done.returncode, done.stdout + done.stderr)

    @cached_property
    def stopped(self) -> tuple[str, dict[str, float]]:
        """The run of a training that was stopped when it had told Prometheus everything, and what that was."""
        longer = "--training.epochs 500 --data.limit 600".split()  # and fewer checkpoints
        job = self.submit("jobs/train.py", *QUICK, *longer, *STORAGE)
        wait_for(lambda: "\nrun " in f"\n{self.jobs.get_job_logs(job)}" or self.has_ended(job), seconds=240)
        run = Job(None, self.jobs.get_job_logs(job)).run
        names = {*OF_EPOCHS, LAST_CHECKPOINT}
        wait_for(lambda: names <= {name for name, value in self.gauges(run).items() if value > 0}, seconds=240)
        told = self.gauges(run)
        done = self.ray("stop", job)
        assert done.returncode == 0, done.stdout + done.stderr
        return run, told

    def has_ended(self, job: str) -> bool:
        return bool(self.jobs.get_job_status(job).is_terminal())

    def gauges(self, run: str) -> dict[str, float]:
        """What Prometheus reads of a run's gauges from the nodes that the head lists for it, by name."""
        listed = json.loads((self.folder / "ray" / "1" / "prom_metrics_service_discovery.json").read_text())
        lines = []
        for target in {target for group in listed for target in group["targets"]}:
            # Ray lists ports of its own processes too, at which nothing need answer.
            with suppress(URLError), urlopen(f"http://{target}/metrics", timeout=10) as answer:
                lines += answer.read().decode().splitlines()
        return {
            line.partition("{")[0].removeprefix("ray_"): float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith("ray_distsens_") and f'run="{run}"' in line
        }

    def told_by_workers(self, run: str) -> list[dict[str, Any]]:
        """The lines of a run in the logs of Ray's workers."""
        logs = [path.read_text(errors="replace") for path in self.folder.glob("ray/*/session_2*/logs/worker-*.err")]
        lines = [json.loads(line) for log in logs for line in log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["run"] == run]

    def ask(self, path: str, token: str | None = None, **body: str) -> Any:
        """What the dashboard answers whoever has that token."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        data = json.dumps(body).encode() if body else None
        with urlopen(Request(f"http://127.0.0.1:{self.ports['dashboard']}{path}", data, headers)) as answer:
            return json.load(answer)

    def status(self, run: str) -> str:
        """Of that run, in PostgreSQL."""
        ((status,),) = self.rows(f"SELECT status FROM runs WHERE name = '{run}'")
        return str(status)

    def secret(self, name: str) -> str:
        return (self.folder / "secrets" / name).read_text()

    @property
    def secrets(self) -> dict[str, str]:
        keys = ConfigParser()
        keys.read_string(self.secret("aws-credentials"))
        names = ("postgres-password", "mlflow-password", "mlflow-cookie-key", "ray-token")
        return {
            "S3's secret key": keys["default"]["aws_secret_access_key"],
            **{name: self.secret(name) for name in names},
            "planted token": PLANTED["HUB_TOKEN"],
            "planted password": "planted-passw0rd-91bc",
        }

    @cached_property
    def s3(self) -> Any:
        keys = ConfigParser()
        keys.read_string(self.secret("aws-credentials"))
        endpoint = f"http://127.0.0.1:{self.ports['s3']}"
        return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys["default"])

    def stored(self) -> list[str]:
        """Keys of all objects."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket="distsens")
        return [one["Key"] for page in pages for one in page["Contents"]]

    def read(self, key: str) -> bytes:
        content: bytes = self.s3.get_object(Bucket="distsens", Key=key)["Body"].read()
        return content

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        import psycopg

        password = self.secret("postgres-password")
        address = f"host=127.0.0.1 port={self.ports['postgres']} dbname=mlflow user=mlflow"
        with psycopg.connect(address, password=password) as connection:
            return connection.execute(query).fetchall()  # type: ignore[arg-type]


def leave_half_made(folder: Path, ports: dict[str, int]) -> None:
    """What a first start that was interrupted leaves: PostgreSQL without a role, and a store half made."""
    for name in ("daemons", "ceph"):
        (folder / name).mkdir(mode=0o700)
    Postgres(folder / "postgres", Daemons(folder / "daemons"), ports["postgres"])._make()
    (folder / "ceph" / "ceph.conf").write_text("[global]\n")


def command(stack_folder: Path, ports: dict[str, int], *words: str) -> list[str]:
    options = [f"--{name}-port={port}" for name, port in ports.items()]
    return [sys.executable, str(ROOT / "infra" / "stack" / "stack.py"), *words, "--folder", str(stack_folder), *options]


@pytest.fixture(scope="module")
def made(
    ray_environment: dict[str, str], forked: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A stack that was left half made by a start that was interrupted."""
    needs(*postgres.missing(), *ceph.missing(), *tracking_server.missing())
    folder = Path(tempfile.mkdtemp(prefix="stack-", dir="/tmp"))
    folder.chmod(0o711)
    names = ("postgres", "s3", "mlflow", "ray", "dashboard")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    environment = {**ray_environment, **PLANTED, "AWS_SECRET_ACCESS_KEY": "of-another-server"}
    del environment["RAY_TMPDIR"]
    one = Stack(folder, ports, environment, tmp_path_factory.mktemp("clone"), forked[forks.SOCKET])
    project(one.clone)
    try:
        leave_half_made(folder, ports)
        yield one
    finally:
        one.script("down")
        shutil.rmtree(folder)


@pytest.fixture
def stack(made: Stack) -> Stack:
    """As `make stack` starts it."""
    made.up()
    return made


def project(target: Path) -> None:
    """What a job needs of the project."""
    for name in ("distsens", "jobs"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "pictures"))


@pytest.mark.ray
@pytest.mark.drill
def test_a_training_on_the_stack_is_tracked_in_postgresql(stack: Stack) -> None:
    run = stack.trained.run
    ((status, run_id),) = stack.rows(f"SELECT status, run_uuid FROM runs WHERE name = '{run}'")
    assert status == "FINISHED"
    epochs = stack.rows(f"SELECT step FROM metrics WHERE run_uuid = '{run_id}' AND key = 'epoch' ORDER BY step")
    assert epochs == [(0,), (1,), (2,)]
    recipe = dict(stack.rows(f"SELECT key, value FROM params WHERE run_uuid = '{run_id}'"))
    assert recipe["data.limit"] == "256"
    tags = dict(stack.rows(f"SELECT key, value FROM tags WHERE run_uuid = '{run_id}'"))
    assert (tags["distsens.commit"], tags["mlflow.source.git.commit"]) == ("c0ffee", "c0ffee")


@pytest.mark.ray
@pytest.mark.drill
def test_a_submitted_training_says_what_it_is_worth_and_its_workers_tell_of_each_epoch(stack: Stack) -> None:
    assert "PGD-2" in stack.trained.output
    told = stack.told_by_workers(stack.trained.run)
    epochs = {(line["rank"], line["epoch"]) for line in told if line["message"] == "epoch"}
    assert epochs == {(rank, epoch) for rank in (0, 1) for epoch in (0, 1, 2)}


@pytest.mark.ray
@pytest.mark.drill
def test_its_checkpoints_its_model_and_mlflows_artifacts_are_in_s3(stack: Stack) -> None:
    run = stack.trained.run
    tracked = [key for key in stack.stored() if key.startswith("mlflow/")]
    for folder in (f"runs/{run}/checkpoints/epoch-0002", f"runs/models/{run}"):
        manifest = json.loads(stack.read(f"{folder}/manifest.json"))
        for name, file in manifest["files"].items():
            assert hashlib.sha256(stack.read(f"{folder}/{name}")).hexdigest() == file["sha256"]
    assert any(key.endswith("/artifacts/weights/model.safetensors") for key in tracked)
    assert any(key.endswith("/MLmodel") for key in tracked)


@pytest.mark.ray
@pytest.mark.drill
def test_every_part_says_where_it_is_and_where_its_secret_lies(stack: Stack) -> None:
    lines = stack.said.splitlines()
    assert [line.split()[0] for line in lines] == ["PostgreSQL", "S3", "MLflow", "Ray", "next:"]
    for line, name in zip(lines, ("postgres", "s3", "mlflow", "dashboard"), strict=False):
        assert f"127.0.0.1:{stack.ports[name]}" in line
        file = Path(line.rpartition("secret in ")[2])
        assert file.stat().st_mode & 0o777 == 0o600
        assert any(secret in file.read_text() for secret in stack.secrets.values())
    assert {file.stat().st_mode & 0o777 for file in (stack.folder / "secrets").iterdir()} == {0o600}
    assert stack.folder.stat().st_mode & 0o777 == 0o711
    for name in ("secrets", "daemons", "ray", "ceph", "postgres"):
        assert (stack.folder / name).stat().st_mode & 0o777 == 0o700


@pytest.mark.ray
@pytest.mark.drill
def test_nobody_gets_in_without_a_password_a_key_or_a_token(stack: Stack) -> None:
    import psycopg

    for port, path in (("mlflow", "/api/2.0/mlflow/experiments/search"), ("dashboard", "/api/jobs/")):
        with pytest.raises(HTTPError) as refused:
            urlopen(f"http://127.0.0.1:{stack.ports[port]}{path}")
        assert refused.value.code == 401
    with pytest.raises(HTTPError) as refused:
        urlopen(f"http://127.0.0.1:{stack.ports['s3']}/distsens")
    assert refused.value.code == 403
    address = f"host=127.0.0.1 port={stack.ports['postgres']} dbname=mlflow user=mlflow"
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(address, password="wrong")


@pytest.mark.ray
@pytest.mark.drill
def test_without_the_token_nobody_submits(stack: Stack) -> None:
    token = stack.secret("ray-token")
    before = stack.ask("/api/jobs/", token)
    for other, code in ((None, 401), (token[:-1] + "x", 403)):
        with pytest.raises(HTTPError) as refused:
            stack.ask("/api/jobs/", other, entrypoint="true")
        assert refused.value.code == code
    assert stack.ask("/api/jobs/", token) == before


@pytest.mark.ray
@pytest.mark.drill
def test_databases_and_servers_listen_on_loopback_alone(stack: Stack) -> None:
    """Ray's nodes listen everywhere, whatever they are told, and ask for the token."""
    listening = {
        (" ".join(process.cmdline()), connection.laddr.ip)
        for process in psutil.process_iter()
        if str(stack.folder) in environment_of(process)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    for part in ("postgres -D", "ceph-mon", "ceph-osd", "radosgw", "mlflow.server"):
        assert {address for command, address in listening if part in command} == {"127.0.0.1"}, part


def environment_of(process: psutil.Process) -> str:
    try:
        return " ".join([*process.cmdline(), *process.environ().values()])
    except psutil.Error:
        return ""


@pytest.mark.ray
@pytest.mark.drill
def test_no_secret_is_in_what_a_training_leaves(stack: Stack) -> None:
    """Neither in a log, nor in a list of processes, nor in MLflow's rows and artifacts, nor in the bucket."""
    run = stack.trained.run
    tables = [name for (name,) in stack.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    rows = {f"table {name}": repr(stack.rows(f'SELECT * FROM "{name}"')).encode() for name in tables}
    # The S3 server keeps its users' keys, without which it could check no signature; of its folder, what it says.
    kept = [path for path in stack.folder.rglob("*") if path.is_file() and "secrets" not in path.parts]
    files = {
        str(path): path.read_bytes() for path in kept if "ceph" not in path.parts or path.suffix in (".log", ".out")
    }
    home = Path(stack.environment["HOME"])
    files |= {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    # What has ended but is not yet reaped has no command line (None).
    running = psutil.process_iter(["pid", "cmdline"])
    processes = {f"process {one.info['pid']}": " ".join(one.info["cmdline"] or ()).encode() for one in running}
    objects = {key: stack.read(key) for key in stack.stored()}
    job = {"output": stack.trained.output.encode(), "stack's output": stack.said.encode()}
    everything = {**rows, **files, **objects, **processes, **job}

    for known in ("table params", f"{stack.folder}/daemons/mlflow.log", f"runs/{run}/run.json", "output"):
        assert everything[known], "the search does not see it"
    assert any("/logs/job-driver-" in name for name in everything), "the search does not see Ray's logs"
    assert any(run.encode() in content for name, content in rows.items())
    leaks = [
        f"{secret} in {name}"
        for name, content in everything.items()
        for secret, value in stack.secrets.items()
        if value.encode() in content
    ]
    assert leaks == []


@pytest.mark.ray
@pytest.mark.drill
def test_started_again_it_leaves_what_runs_alone(stack: Stack) -> None:
    def daemons() -> set[str]:
        return {file.read_text() for file in stack.folder.rglob("*.pid")}

    before = daemons()
    again = stack.script("up", "--cpus", "1")
    assert (again.returncode, again.stdout) == (0, stack.said), again.stderr
    assert daemons() == before


@pytest.mark.ray
@pytest.mark.drill
def test_a_submitted_evaluation_judges_the_best_and_the_last_of_a_training(stack: Stack, tmp_path: Path) -> None:
    model, summary = f"{BUCKET}/runs/{stack.trained.run}", tmp_path / "summary.json"
    effort = ("--data.limit", "8", "--pgd.steps", "2", "--pgd.restarts", "1", "--workers.num", "2", "--shard", "4")
    judged = stack.run(
        *("jobs/evaluate.py", "--model", f"{model}#best", f"{model}#last"),
        *("--attacks", "pgd", "transfer", "--transfer", f"{model}#last"),
        *(*effort, *STORAGE, "--summary", str(summary)),
    )
    assert judged.code == 0, judged.output
    result = json.loads(summary.read_text())
    assert result["over_models"] == {}, "the best and the last of one training"
    both = result["models"]
    assert [one["model"]["address"] for one in both] == [f"{model}#best", f"{model}#last"]
    folders = {key.split("/")[1] for key in stack.stored() if key.startswith("runs/evaluate-")}
    assert {one["storage"] for one in both} == {f"{BUCKET}/runs/{folder}" for folder in folders}
    assert [list(one["after_attack"]) for one in both] == [["pgd", "transfer"]] * 2
    assert all(one["judged"] == 8 for one in both)
    for one in both:
        told = stack.told_by_workers(one["run"])
        assert [(line["message"], line["images"]) for line in told] == [("judging", 4)] * 2
        assert {line["first_image"] for line in told} == {0, 4}


@pytest.mark.ray
@pytest.mark.drill
def test_an_analysis_is_submitted(stack: Stack) -> None:
    effort = """
    --data.limit 20 --workers.num 1 --pgd.steps 2 --ablation.images 8 --ablation.ratios 0.2
    --ablation.replacements benign --ablation.steps 1 --gallery.neurons 1 --gallery.images 1 --matched_images 0
    """.split()
    output = ("--output", f"{BUCKET}/analysis")
    done = stack.run("jobs/analyze.py", "--model", f"{BUCKET}/runs/{stack.trained.run}", *effort, *output, *STORAGE)
    assert done.code == 0, done.output
    assert b"<html" in stack.read("analysis/report.html")


@pytest.mark.ray
@pytest.mark.drill
def test_a_sweep_is_submitted(stack: Stack) -> None:
    grid = "--search.seed.grid 0 1 --sweep.searcher grid --sweep.judged_images 0".split()
    small = "--training.epochs 1 --workers.num 1 --stabilize.weight 0".split()
    done = stack.run("jobs/tune.py", *QUICK, *small, *grid, *STORAGE)
    assert done.code == 0, done.output
    chosen = "SELECT version FROM registered_model_aliases WHERE name = 'quickstart' AND alias = 'champion'"
    tags = dict(stack.rows(f"SELECT key, value FROM model_version_tags WHERE version IN ({chosen})"))
    assert tags["sweep"].startswith("quickstart-")


@pytest.mark.ray
@pytest.mark.drill
def test_a_submitted_job_that_the_cluster_can_never_hold_fails_and_leaves_no_run(stack: Stack) -> None:
    before = stack.rows("SELECT count(*) FROM runs")
    too_many = stack.run("jobs/train.py", *QUICK, "--workers.num", "5", *STORAGE)
    assert too_many.code == 2
    assert "error: workers.num: got 5; the cluster has room for 2 workers of 1 CPU each" in too_many.output
    assert stack.rows("SELECT count(*) FROM runs") == before


@pytest.mark.ray
@pytest.mark.drill
def test_a_submitted_job_fails_as_the_training_does(stack: Stack) -> None:
    failed = stack.run(
        "jobs/train.py",
        *QUICK,
        "--training.optimizer",
        "sgd",
        "--training.lr",
        "1000",
        "--training.weight_decay",
        "100",
        *STORAGE,
    )
    assert failed.code == 1
    assert "failed: the loss or its gradient became NaN" in failed.output
    assert stack.status(failed.run) == "FAILED"


@pytest.mark.ray
@pytest.mark.drill
def test_a_submitted_job_that_is_stopped_says_so_and_leaves_its_places(stack: Stack) -> None:
    run, told = stack.stopped
    assert set(told) == {*OF_EPOCHS, LAST_CHECKPOINT}
    wait_for(lambda: stack.status(run) == "KILLED", seconds=40)
    token = stack.secret("ray-token")

    def used() -> float:
        return stack.ask("/api/cluster_status", token)["data"]["clusterStatus"]["loadMetricsReport"]["usage"]["CPU"][0]

    wait_for(lambda: used() == 0, seconds=60)


@pytest.mark.ray
@pytest.mark.drill
def test_stopped_it_ends_its_jobs_and_all_processes_and_keeps_the_data(stack: Stack) -> None:
    """The job is a training that was stopped and resumed; the next test starts the stack again."""
    run, _ = stack.stopped
    wait_for(lambda: stack.status(run) == "KILLED", seconds=40)
    epochs = f"SELECT 1 FROM metrics JOIN runs USING (run_uuid) WHERE key = 'epoch' AND name = '{run}'"
    before = len(stack.rows(epochs))
    stack.submit("jobs/train.py", "--resume", run, *STORAGE)
    wait_for(lambda: len(stack.rows(epochs)) > before and stack.status(run) == "RUNNING", seconds=180)
    stack.runs = False
    down = stack.script("down")
    said = f"stopped Ray, MLflow, S3, PostgreSQL; the data stay in {stack.folder}\n"
    assert (down.returncode, down.stdout) == (0, said), down.stderr
    running = psutil.process_iter(["cmdline"])
    left = [one.info["cmdline"] for one in running if str(stack.folder) in environment_of(one)]
    assert left == []
    Postgres(stack.folder / "postgres", Daemons(stack.folder / "daemons"), stack.ports["postgres"]).start("")
    Ceph(stack.folder / "ceph", stack.ports["s3"]).start(0)
    assert stack.status(run) == "KILLED"
    assert f"runs/{run}/run.json" in stack.stored()


def test_a_port_that_is_taken_is_wrong_input(tmp_path: Path) -> None:
    needs(*postgres.missing(), *ceph.missing(), *tracking_server.missing())
    server = subprocess.Popen([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"], stdout=subprocess.PIPE)
    try:
        (connection,) = wait_for(lambda: psutil.Process(server.pid).net_connections("inet"))
        ports = dict(zip(("postgres", "s3", "mlflow"), free_ports(3), strict=True))
        ports["ray"] = connection.laddr.port
        folder = Path(tempfile.gettempdir()) / "no-stack"
        done = subprocess.run(command(folder, ports, "up"), capture_output=True, text=True, check=False)
        taken = f"error: port {ports['ray']} is taken: choose another by --ray-port\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", taken)
        assert not folder.exists()
    finally:
        server.kill()
        server.communicate()


def test_a_folder_that_is_anothers_or_too_deep_is_wrong_input(tmp_path: Path) -> None:
    needs(*postgres.missing(), *ceph.missing(), *tracking_server.missing())
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        (link := Path(short) / "link").symlink_to(tmp_path)
        for folder, says in ((link, "not a folder of yours"), (tmp_path / ("x" * 40), "too long")):
            done = subprocess.run(command(folder, {}, "up"), capture_output=True, text=True, check=False)
            assert done.returncode == 2
            assert says in done.stderr


def wait_for(find: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_mlflow_answers_to_the_name_of_a_proxy_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.server.security_utils import is_allowed_host_header

    (tmp_path / "secrets").mkdir()
    ours = stack_module.Stack(tmp_path, stack_module.PORTS, cpus=1)
    for proxy in (None, "mlflow.example.org"):
        monkeypatch.delenv("MLFLOW_SERVER_ALLOWED_HOSTS", raising=False)
        if proxy:
            monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", proxy)
        allowed = ours._of_tracking_server()["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
        assert is_allowed_host_header(allowed, "127.0.0.1:5000")
        assert is_allowed_host_header(allowed, "localhost:5001")  # the near end of a tunnel
        assert is_allowed_host_header(allowed, "mlflow.example.org") == (proxy is not None)
        assert not is_allowed_host_header(allowed, "elsewhere.example.org")


def test_a_daemon_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    daemons.start("quick", ["sh", "-c", "echo out of luck; exit 3"])
    with pytest.raises(StackError, match="quick ended: out of luck"):
        daemons.wait("quick", lambda: False)
    assert not daemons.stop("quick")


def test_a_daemon_is_stopped_with_all_that_it_started_even_if_it_does_not_listen(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    daemons.start("deaf", ["sh", "-c", "trap '' TERM; sleep 600 & echo started; wait"])
    daemons.wait("deaf", lambda: "started" in daemons.log("deaf").read_text())
    process = daemons.process("deaf")
    assert process is not None
    family = [process, *process.children(recursive=True)]
    assert len(family) == 2
    assert daemons.stop("deaf", patience_s=0.5)
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family)
    assert daemons.process("deaf") is None


def test_a_process_that_has_a_daemons_number_by_chance_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "600"])
    try:
        (tmp_path / "gone.pid").write_text(json.dumps({"pid": other.pid, "started": 1.0}))
        assert not Daemons(tmp_path).stop("gone")
        assert other.poll() is None
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
