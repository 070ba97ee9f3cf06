"""A cluster that grows: what it can give, and that it grows for a training and shrinks after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree

import pytest
import ray
from processes import end_processes_with, free_ports
from ray._raylet import GcsClient
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

from distsens.distributed.cluster import check_capacity_of_cluster
from distsens.errors import InputError
from distsens.experiment import Workers

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.ray


def test_a_cluster_has_room_for_what_its_autoscaler_may_add(local_ray: None) -> None:
    check_capacity_of_cluster(Workers(num=2))
    with pytest.raises(InputError, match="the cluster has room for 2 workers of 1 CPU each"):
        check_capacity_of_cluster(Workers(num=5))
    # What an autoscaler tells the cluster of itself.
    group = NodeGroupConfig(name="workers", resources={"CPU": 4}, max_count=3)
    config = ClusterConfig(node_group_configs=[group]).SerializeToString()
    GcsClient(address=ray.get_runtime_context().gcs_address).report_cluster_config(config)
    check_capacity_of_cluster(Workers(num=12))
    with pytest.raises(InputError, match="the cluster, grown as far as it may, has room for 12 workers"):
        check_capacity_of_cluster(Workers(num=13))


Run = Callable[..., subprocess.CompletedProcess[str]]


VERSION_1: dict[str, str] = {}
VERSION_2 = {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID}


@pytest.fixture
def growing(request: pytest.FixtureRequest, ray_environment: dict[str, str], tmp_path: Path) -> Iterator[Run]:
    """Run a program that joins a head without CPUs, whose autoscaler may add two nodes of one CPU each.

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

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments, cwd=tmp_path, env=joining, capture_output=True, text=True, timeout=240, check=False
        )

    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: nodes(run) == {"ALIVE": 1} or head.poll() is not None)
        assert head.poll() is None, (tmp_path / "head.log").read_text()
        yield run
    finally:
        head.kill()
        head.wait()
        end_processes_with(files)
        rmtree(files, ignore_errors=True)


def nodes(run: Run) -> Counter[str]:
    """How many of the cluster's nodes are in which state."""
    listed = run(str(BIN / "ray"), "list", "nodes", "--format", "json")
    # Before the first node is up, it says so in words.
    return Counter(node["state"] for node in json.loads(listed.stdout)) if listed.stdout.startswith("[") else Counter()


TRAIN = [
    *(sys.executable, str(ROOT / "jobs" / "train.py"), "--recipe", "quickstart", "--workers.num", "2"),
    *"--data.limit 128 --training.epochs 1 --attack.steps 1 --validation.steps 1".split(),
    *"--test.steps 1 --test.restarts 1".split(),
]


@pytest.mark.drill
@pytest.mark.parametrize("growing", [VERSION_1], indirect=True, ids=["v1"])
def test_a_training_that_the_cluster_may_grow_for_is_not_refused(growing: Run) -> None:
    # The autoscaler tells of itself some time after the head has started.
    wait_for(lambda: growing(*TRAIN, "--dry-run").returncode == 0)
    assert nodes(growing) == {"ALIVE": 1}


@pytest.mark.drill
@pytest.mark.parametrize("growing", [VERSION_2], indirect=True, ids=["v2"])
def test_a_cluster_grows_for_a_training_and_shrinks_after(growing: Run) -> None:
    assert nodes(growing) == {"ALIVE": 1}
    trained = growing(*TRAIN)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "2 workers" in trained.stdout
    assert nodes(growing).total() == 3, "a node for each worker"
    wait_for(lambda: nodes(growing) == {"ALIVE": 1, "DEAD": 2})


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.5)
