"""A pool of actors: what becomes of tasks when a node is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray.exceptions import ActorUnavailableError

from distsens.distributed.pool import ActorPool
from distsens.experiment import Workers

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


class Fragile:
    """Its process ends at the first attempts of a task."""

    def __init__(self, run: str, rank: int) -> None:
        pass

    def work(self, folder: Path, deaths: int) -> int:
        attempt = len(list(folder.iterdir()))
        (folder / str(attempt)).touch()
        if attempt < deaths:
            os._exit(1)
        return attempt


def test_a_task_whose_retries_all_went_to_an_actor_that_was_gone_is_given_anew_but_not_for_ever(
    local_ray: None, tmp_path: Path
) -> None:
    pool = ActorPool[str](Fragile, Workers(num=1, max_failures=1), "test")
    for name, deaths in (("some", 2), ("many", 9)):
        (tmp_path / name).mkdir()
        done = pool.run({"a": lambda actor, name=name, n=deaths: actor.work.remote(tmp_path / name, n)}, seconds=1)
        if name == "some":  # Ray's own retry, and ours
            assert [one for one in done if one is not None] == [("a", 2)]
        else:
            with pytest.raises(ActorUnavailableError):
                list(done)
    assert len(list((tmp_path / "many").iterdir())) == 4
    pool.close()
