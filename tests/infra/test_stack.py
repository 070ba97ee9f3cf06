"""The stack that `make stack` starts: a training's runs are in PostgreSQL, its files in S3, and its secrets nowhere."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import boto3
import ceph
import postgres
import psutil
import pytest
import stack as stack_module
import tracking_server
from ceph import Ceph
from daemons import Daemons, StackError, free_ports
from postgres import Postgres

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
QUICK = """
--recipe quickstart --data.limit 256 --training.epochs 2 --attack.steps 2 --validation.steps 2 --test.steps 2
--test.restarts 1 --workers.num 2
""".split()
# In the environment of whoever starts the stack, and so of every job.
PLANTED = {"HUB_TOKEN": "planted-t0ken-7f3a", "DATABASE_URL": "postgresql://planted:planted-passw0rd-91bc@db/x"}

pytestmark = pytest.mark.timeout(900)


def needs(*missing: str) -> None:
    if missing:
        pytest.skip(f"the stack's parts are not installed: no {', '.join(missing)}")


@dataclass
class Stack:
    """A running stack, and a training that was submitted to it."""

    folder: Path
    ports: dict[str, int]
    environment: dict[str, str]
    said: str
    clone: Path
    submitted: str = ""

    def submit(self, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """``ray job submit``, with what the stack's script sets."""
        shell = f'. {self.folder}/client.sh && exec {BIN}/ray job submit --working-dir . "$@"'
        job = ["python", "jobs/train.py", *arguments, "--storage.path", "s3://distsens/runs"]
        words = ["sh", "-c", shell, "sh", *options, "--", *job]
        return subprocess.run(words, cwd=self.clone, env=self.environment, capture_output=True, text=True, check=False)

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

    @property
    def run(self) -> str:
        found = re.search(r"^run (\S+)$", self.submitted, re.MULTILINE)
        assert found is not None, self.submitted
        return found[1]

    @property
    def s3(self) -> Any:
        keys = ConfigParser()
        keys.read_string(self.secret("aws-credentials"))
        endpoint = f"http://127.0.0.1:{self.ports['s3']}"
        return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys["default"])

    def objects(self) -> dict[str, bytes]:
        listed = self.s3.list_objects_v2(Bucket="distsens")["Contents"]
        return {one["Key"]: self.s3.get_object(Bucket="distsens", Key=one["Key"])["Body"].read() for one in listed}

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
def stack(ray_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """As `make stack` starts it after a start that was interrupted; a training is submitted as its last line says."""
    needs(*postgres.missing(), *ceph.missing(), *tracking_server.missing())
    folder = Path(tempfile.mkdtemp(prefix="stack-", dir="/tmp"))
    folder.chmod(0o711)
    names = ("postgres", "s3", "mlflow", "ray", "dashboard")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    environment = {**ray_environment, **PLANTED, "AWS_SECRET_ACCESS_KEY": "of-another-server"}
    del environment["RAY_TMPDIR"]
    try:
        leave_half_made(folder, ports)
        up = subprocess.run(
            command(folder, ports, "up", "--cpus", "1"), env=environment, capture_output=True, text=True, check=False
        )
        assert up.returncode == 0, up.stdout + up.stderr
        one = Stack(folder, ports, environment, up.stdout, tmp_path_factory.mktemp("clone"))
        project(one.clone)
        done = one.submit(*QUICK)
        one.submitted = done.stdout + done.stderr
        assert done.returncode == 0, one.submitted
        yield one
    finally:
        subprocess.run(command(folder, ports, "down"), env=environment, check=False)
        shutil.rmtree(folder)


def project(target: Path) -> None:
    """What a job needs of the project."""
    for name in ("distsens", "jobs"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "pictures"))


@pytest.mark.ray
@pytest.mark.drill
def test_a_training_on_the_stack_is_tracked_in_postgresql(stack: Stack) -> None:
    ((status, run_id),) = stack.rows(f"SELECT status, run_uuid FROM runs WHERE name = '{stack.run}'")
    assert status == "FINISHED"
    epochs = stack.rows(f"SELECT step FROM metrics WHERE run_uuid = '{run_id}' AND key = 'epoch' ORDER BY step")
    assert epochs == [(0,), (1,), (2,)]
    recipe = dict(stack.rows(f"SELECT key, value FROM params WHERE run_uuid = '{run_id}'"))
    assert recipe["data.limit"] == "256"


@pytest.mark.ray
@pytest.mark.drill
def test_its_checkpoints_its_model_and_mlflows_artifacts_are_in_s3(stack: Stack) -> None:
    objects = stack.objects()
    for folder in (f"runs/{stack.run}/checkpoints/epoch-0002", f"runs/models/{stack.run}"):
        manifest = json.loads(objects[f"{folder}/manifest.json"])
        for name, file in manifest["files"].items():
            assert hashlib.sha256(objects[f"{folder}/{name}"]).hexdigest() == file["sha256"]
    tracked = [key for key in objects if key.startswith("mlflow/")]
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
    job = {"output": stack.submitted.encode(), "stack's output": stack.said.encode()}
    everything = {**rows, **files, **stack.objects(), **processes, **job}

    for known in ("table params", f"{stack.folder}/daemons/mlflow.log", f"runs/{stack.run}/run.json", "output"):
        assert everything[known], "the search does not see it"
    assert any("/logs/job-driver-" in name for name in everything), "the search does not see Ray's logs"
    assert any(stack.run.encode() in content for name, content in rows.items())
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
    again = subprocess.run(
        command(stack.folder, stack.ports, "up", "--cpus", "1"), env=stack.environment, capture_output=True, text=True
    )
    assert (again.returncode, again.stdout) == (0, stack.said), again.stderr
    assert daemons() == before


@pytest.mark.ray
@pytest.mark.drill
def test_stopped_it_ends_its_jobs_and_all_processes_and_keeps_the_data(stack: Stack) -> None:
    long = stack.submit(*QUICK, "--training.epochs", "500", options=("--no-wait",))
    assert long.returncode == 0, long.stdout + long.stderr
    wait_for(lambda: len(stack.rows("SELECT 1 FROM metrics WHERE key = 'epoch'")) > 3, seconds=180)
    down = subprocess.run(
        command(stack.folder, stack.ports, "down"), env=stack.environment, capture_output=True, text=True, check=True
    )
    assert down.stdout == f"stopped Ray, MLflow, S3, PostgreSQL; the data stay in {stack.folder}\n"
    running = psutil.process_iter(["cmdline"])
    left = [one.info["cmdline"] for one in running if str(stack.folder) in environment_of(one)]
    assert left == []
    Postgres(stack.folder / "postgres", Daemons(stack.folder / "daemons"), stack.ports["postgres"]).start("")
    Ceph(stack.folder / "ceph", stack.ports["s3"]).start(0)
    runs = dict(stack.rows("SELECT name, status FROM runs ORDER BY start_time"))
    assert list(runs.values()) == ["FINISHED", "KILLED"]
    assert f"runs/models/{stack.run}/manifest.json" in stack.objects()


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
