"""A Ray that runs on this machine, for jobs to join: each is spared the start of one of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from processes import end_processes_with

OPEN = {"RAY_AUTH_MODE": "disabled"}

# It ends with the process, which ends when it is told anything.
_RUNS = """
import ray
ray.init(address="local", num_cpus={cpus}, include_dashboard=False, log_to_driver=False)
print("address", ray.get_runtime_context().gcs_address, flush=True)
input()
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
        process = subprocess.Popen(
            [sys.executable, "-c", _RUNS.format(cpus=cpus)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            address = next(line for line in process.stdout if line.startswith("address ")).split()[1]
            yield {**environment, "RAY_ADDRESS": address}
        finally:
            process.communicate("end\n")
            end_processes_with(environment["RAY_TMPDIR"])
