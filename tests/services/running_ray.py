"""A Ray that runs on this machine, for jobs to join: each is spared the start of one of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes import end_processes_with

# They ask nobody for a token, and so listen on loopback alone, as Ray's nodes do on machines of which it thinks so.
OPEN = {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# Without what nobody asks here: its dashboard, its autoscaler, and who passes on what workers print.
_HEAD = """
import sys
from ray.cluster_utils import Cluster

without = {{"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}}
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": {cpus}, **without}})
print("address", cluster.address, flush=True)
"""
_STAYS = """
sys.stdin.read()
cluster.shutdown()
"""


@contextmanager
def private_environment() -> Iterator[dict[str, str]]:
    """Environment of a process that starts or joins a Ray that no other process on the machine can disturb.

    Its temporary folder (short, as Ray puts sockets there) and home are private.
    """
    folder = Path(tempfile.mkdtemp(prefix="ds-", dir="/tmp"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment |= {
        "RAY_TMPDIR": str(folder / "r"),
        "TMPDIR": str(folder / "r"),
        "HOME": str(folder / "home"),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "REPORTER_UPDATE_INTERVAL_MS": "60000",  # of what Ray's agent measures, which costs more than is used here
        "PYTHONUNBUFFERED": "1",
    }
    (folder / "home").mkdir()
    (folder / "r").mkdir()
    try:
        yield environment
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_ray(variables: Mapping[str, str], cpus: int) -> Iterator[dict[str, str]]:
    """Environment of a job that joins a Ray with these variables and so many cores, whatever this machine has."""
    with private_environment() as environment:
        environment |= {**variables, **OPEN}
        with _program(_HEAD.format(cpus=cpus) + _STAYS, environment) as (_, address):
            yield {**environment, "RAY_ADDRESS": address}


@contextmanager
def _program(code: str, environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program that starts a Ray, which ends with it, and prints its address; it ends when its input does."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        yield process, next(line for line in process.stdout if line.startswith("address ")).split()[1]
    finally:
        process.communicate()
        end_processes_with(environment["RAY_TMPDIR"])


# A word a line: `add` a node of one core, or `lose` the newest of them, as when its machine is switched off.
_NODES = """
nodes = []
for line in sys.stdin:
    if line == "add\\n":
        nodes.append(cluster.add_node(num_cpus=1))
    else:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    print("done", line, end="", flush=True)
cluster.shutdown()
"""


@dataclass
class Nodes:
    """A Ray whose head has no core, with nodes of one core each that come and go."""

    environment: dict[str, str]
    """Of a job that joins it."""
    _process: subprocess.Popen[str]

    def add(self) -> None:
        """Start one more node."""
        self._tell("add")

    def lose(self) -> None:
        """Kill the newest node, with everything on it."""
        self._tell("lose")

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(word, file=self._process.stdin, flush=True)
        assert f"done {word}\n" in self._process.stdout, "the cluster has ended"


@contextmanager
def ray_of_nodes(variables: Mapping[str, str]) -> Iterator[Nodes]:
    """A Ray without a node but its head, for jobs that join it with these variables."""
    with private_environment() as environment:
        environment |= {**variables, **OPEN}
        with _program(_HEAD.format(cpus=0) + _NODES, environment) as (process, address):
            yield Nodes({**environment, "RAY_ADDRESS": address}, process)
