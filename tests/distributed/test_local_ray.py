"""A Ray of a job's own is for its user alone, and starts whole or not at all."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from distsens.distributed import local_ray
from distsens.distributed.ports import free_ports
from distsens.errors import UnavailableError

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]

# Starts one, with a worker, and prints where whichever of its processes listens.
LISTENS = """
import json
import os

import psutil
import ray

from distsens.distributed.cluster import connected


@ray.remote
class Worker:
    def process(self):
        return os.getpid()


with connected():
    worker = Worker.remote()
    ray.get(worker.process.remote())
    me = psutil.Process()
    others = me.children(recursive=True)
    everyone = [me, *others]
    found = [(one.name(), listens.laddr.ip) for one in everyone for listens in one.net_connections("tcp")
             if listens.status == psutil.CONN_LISTEN]
    sessions = [os.getsid(one.pid) for one in others]
    print(json.dumps([found, os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"], os.getsid(0), sessions]))
"""


@pytest.fixture
def environment(ray_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Of a user who has never used Ray."""
    return {**ray_environment, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}


def test_it_listens_on_loopback_alone_asks_for_a_token_that_no_file_holds_and_stands_apart_from_the_jobs_group(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENS], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    listening, mode, token, mine, sessions = json.loads(done.stdout)
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert len(listening) > 6
    assert len(sessions) > 3
    assert mine not in sessions, "what the job's process group is told would end it"
    assert {address.removeprefix("::ffff:") for _, address in listening} <= {"127.0.0.1", "::1"}
    assert mode == "token"
    written = [path for path in Path(environment["RAY_TMPDIR"]).rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if token.encode() in path.read_bytes()]
    assert not (tmp_path / ".ray").exists()


# Says and tries again, and tells what else runs of it.
STARTS = """
import json
import sys

import psutil
import ray

from distsens.command_line import run_job
from distsens.distributed.cluster import connected


def say(line):
    print(json.dumps([line, [one.name() for one in psutil.Process().children(recursive=True)]]), flush=True)
    sys.stdin.readline()


def job(_):
    with connected(say):
        print(len(ray.nodes()))
    return 0


run_job(job)
"""


def start(environment: dict[str, str], port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STARTS],
        env={**environment, "RAY_GCS_SERVER_PORT": str(port)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


@pytest.mark.drill
def test_one_that_does_not_start_is_tried_once_more(environment: dict[str, str]) -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)) as taken, start(environment, port) as process:
        line, left = said(process)
        assert line.startswith("Ray did not start (server_ Failed to start the grpc server. The specified port is ")
        assert line.endswith("; it is tried once more")
        assert left == []
        taken.close()
        assert process.communicate("\n")[0] == "1\n"
    assert process.returncode == 0


def test_one_that_does_not_start_twice_is_given_up_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def init(**_: Any) -> None:
        started.append(subprocess.Popen(["sleep", "600"]))
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr(local_ray.ray, "init", init)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token")
    lines: list[str] = []
    with pytest.raises(UnavailableError, match=r"^Ray does not start on this machine: The current node timed out"):
        local_ray.start_local_ray(1, lines.append)
    assert [line.endswith("; it is tried once more") for line in lines] == [True]
    assert [psutil.pid_exists(one.pid) for one in started] == [False, False]
