"""A pool of actors: what becomes of tasks when a node is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

# Two nodes with a core each, of which the second is lost while its actor is at a task.
_LOSES_A_NODE = """
import json, pathlib, sys, time
import ray
from ray.cluster_utils import Cluster
from distsens.distributed.pool import ActorPool
from distsens.experiment import Workers

folder = pathlib.Path(sys.argv[1])

class Waiter:
    def __init__(self, run, rank):
        pass

    def wait(self, key, head):
        if ray.get_runtime_context().get_node_id() != head:
            (folder / f"{key}.begun").touch()
            time.sleep(600)
        return "head"

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
head = ray.get_runtime_context().get_node_id()
pool = ActorPool(Waiter, Workers(num=2), "test")
tasks = {key: lambda actor, key=key: actor.wait.remote(key, head) for key in "abcdef"}
found = {}
for done in pool.run(tasks, seconds=0.2):
    if done is not None:
        found[done[0]] = done[1]
    if node is not None and len(found) == 5 and list(folder.glob("*.begun")):
        # Its actor is at the sixth, and could only begin again where there is no place.
        cluster.remove_node(node, allow_graceful=False)
        node = None
again = {"g": lambda actor: actor.wait.remote("g", head)}
found |= dict(done for done in pool.run(again, seconds=0.2) if done is not None)
pool.close()
ray.shutdown()
cluster.shutdown()
print(json.dumps(found))
"""


def test_an_idle_actor_takes_the_task_of_one_that_lost_its_node(
    tmp_path: Path, ray_environment: dict[str, str]
) -> None:
    program = subprocess.run(
        [sys.executable, "-c", _LOSES_A_NODE, str(tmp_path)],
        env=ray_environment | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert program.returncode == 0, program.stderr
    assert json.loads(program.stdout.splitlines()[-1]) == dict.fromkeys("abcdefg", "head")
