"""A cluster that grows: what it can give, and that it grows for a training and shrinks after."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import forks
import pytest
from processes import end_processes_with
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from distsens.distributed.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.ray


# Joins the cluster, and answers lines in JSON: how many of its nodes are in which state, and why it refuses so many
# workers; or tells it what an autoscaler tells of itself, that it may add three nodes of four CPUs.
LOOKS = """
import json
import sys
from collections import Counter

import ray
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

from distsens.distributed.cluster import check_capacity_of_cluster
from distsens.errors import InputError
from distsens.experiment import Workers


def answer(word, *numbers):
    if word == "nodes":
        return Counter("ALIVE" if node["Alive"] else "DEAD" for node in ray.nodes())
    if word == "grows":
        group = NodeGroupConfig(name="workers", resources={"CPU": 4}, max_count=3)
        config = ClusterConfig(node_group_configs=[group]).SerializeToString()
        return GcsClient(address=ray.get_runtime_context().gcs_address).report_cluster_config(config)
    try:
        return check_capacity_of_cluster(Workers(num=int(*numbers)))
    except InputError as error:
        return str(error)


ray.init(log_to_driver=False)
print("joined", flush=True)
for line in sys.stdin:
    print(json.dumps(answer(*line.split())), flush=True)
"""


@dataclass
class Growing:
    """A cluster that grows, a program that looks at it, and the environment of others that join it."""

    looks: subprocess.Popen[str]
    environment: dict[str, str]

    def ask(self, line: str) -> Any:
        assert self.looks.stdin is not None
        assert self.looks.stdout is not None
        print(line, file=self.looks.stdin, flush=True)
        return json.loads(self.looks.stdout.readline())

    def refuses(self, workers: int) -> str:
        """Why it refuses so many workers, if it does."""
        return self.ask(f"workers {workers}") or ""

    def nodes(self) -> dict[str, int]:
        """How many of its nodes are in which state."""
        found: dict[str, int] = self.ask("nodes")
        return found


VERSION_1: dict[str, str] = {}
VERSION_2 = {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID}


@pytest.fixture
def growing(request: pytest.FixtureRequest, ray_environment: dict[str, str], tmp_path: Path) -> Iterator[Growing]:
    """A head without CPUs, whose autoscaler may add two nodes of one CPU each.

    The nodes are real, of Ray's provider for tests, which starts them on this machine.
    """
    port, dashboard, agent = free_ports(3)
    files = tempfile.mkdtemp(prefix="ds-", dir="/tmp")  # short, as Ray puts sockets there
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    config = {
        "cluster_name": "growing",
        "max_workers": 2,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 2,
        "provider": {
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": f"127.0.0.1:{port}",
            "launch_multiple": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{kind}_commands": [] for kind in commands},
    }
    (tmp_path / "autoscaler.yaml").write_text(json.dumps(config))
    environment = {
        **ray_environment,
        "RAY_TMPDIR": files,
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        **request.param,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus", "0"]
    command += ["--port", str(port), "--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent)]
    command += ["--autoscaling-config", str(tmp_path / "autoscaler.yaml")]
    joining = {
        **ray_environment,
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_AUTH_MODE": "disabled",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ray_environment.get('PYTHONPATH', '')}",
    }

    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: answers(port) or head.poll() is not None)
        assert head.poll() is None, (tmp_path / "head.log").read_text()
        with subprocess.Popen(
            [sys.executable, "-c", LOOKS],
            cwd=tmp_path,
            env=joining,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as looks:
            try:
                assert looks.stdout is not None
                assert "joined\n" in looks.stdout, "no cluster is joined"
                yield Growing(looks, joining)
            finally:
                looks.kill()
    finally:
        head.kill()
        head.wait()
        end_processes_with(files)
        rmtree(files, ignore_errors=True)


def answers(port: int) -> bool:
    """Whether someone listens there."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.drill
@pytest.mark.parametrize("growing", [VERSION_1], indirect=True, ids=["v1"])
def test_a_cluster_has_room_for_what_its_autoscaler_may_add(growing: Growing) -> None:
    # The autoscaler tells of itself some time after the head has started, and not how far it goes.
    wait_for(lambda: not growing.refuses(2))
    assert not growing.refuses(13)
    growing.ask("grows")
    assert not growing.refuses(12)
    assert "the cluster, grown as far as it may, has room for 12 workers" in growing.refuses(13)
    assert growing.nodes() == {"ALIVE": 1}, "nothing was started for it"


TRAIN = [
    *(str(ROOT / "jobs" / "train.py"), "--recipe", "quickstart", "--workers.num", "2", "--stabilize.weight", "0"),
    *"--data.limit 128 --training.epochs 1 --attack.steps 1 --validation.steps 1".split(),
    *"--test.steps 1 --test.restarts 1".split(),
]


@pytest.mark.drill
@pytest.mark.parametrize("growing", [VERSION_2], indirect=True, ids=["v2"])
def test_a_cluster_grows_for_a_training_and_shrinks_after(
    growing: Growing, forked: dict[str, str], tmp_path: Path
) -> None:
    assert growing.nodes() == {"ALIVE": 1}
    path = f"{growing.environment['PYTHONPATH']}{os.pathsep}{forked['PYTHONPATH']}"
    training = forks.start(TRAIN, env={**growing.environment, **forked, "PYTHONPATH": path}, cwd=tmp_path)
    assert training.stdout is not None
    output = training.stdout.read()
    assert training.wait(timeout=60) == 0, output
    assert "2 workers" in output
    assert sum(growing.nodes().values()) == 3, "a node for each worker"
    wait_for(lambda: growing.nodes() == {"ALIVE": 1, "DEAD": 2})


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.5)
