"""A Ray cluster of three nodes on this machine: a head without work and two workers, with a token.

`make cluster` starts it unless it is up and prints the line that makes the jobs join it; `make cluster-down` ends its
processes and no others. Everything about it is in the folder .cluster.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from distsens.command_line import run_job
from distsens.distributed.ports import free_ports
from distsens.errors import InputError

FOLDER = Path(__file__).resolve().parents[2] / ".cluster"

# Of head and workers; Ray takes 127.0.0.1 for the machine's outer address.
_HEAD, _WORKERS = "127.0.0.2", ("127.0.0.3", "127.0.0.4")
_MARK = "DISTSENS_CLUSTER"  # in the environment of each process of the cluster, so that it can be told from other Rays
_START_TIMEOUT_S = 300
_END_TIMEOUT_S = 20


def main(arguments: Sequence[str]) -> int:
    """Do what the one word says; the exit code is 2 for any other."""
    commands = {"up": up, "down": down}
    if len(arguments) != 1 or arguments[0] not in commands:
        raise InputError("command line", " ".join(arguments) or None, "it takes one word, up or down")
    commands[arguments[0]]()
    return 0


def up() -> None:
    """Start the cluster unless it is up, and print what a shell needs to join it."""
    join = FOLDER / "join.sh"
    if not join.exists() or not _processes():
        down()  # what may be left of one that crashed
        try:
            _start(join)
        except BaseException:
            down()
            raise
    print(join.read_text(), end="")


def down() -> None:
    """End the cluster's processes, jobs that were submitted to it included, and remove its files."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        deadline = time.monotonic() + _END_TIMEOUT_S
        asked: set[psutil.Process] = set()
        # Again and again, as one may start another while it ends.
        while (left := _processes()) and time.monotonic() < deadline:
            for process in left - asked:
                try:
                    end(process)
                except psutil.NoSuchProcess:
                    continue
            asked |= left
            psutil.wait_procs(left, timeout=0.5)
    if (files := FOLDER / "ray").is_symlink():
        shutil.rmtree(files.resolve(), ignore_errors=True)
    shutil.rmtree(FOLDER, ignore_errors=True)


def _start(join: Path) -> None:
    FOLDER.mkdir()
    token = FOLDER / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    files = Path(tempfile.mkdtemp(prefix="distsens-", dir="/tmp"))  # a short path, as Ray puts sockets there
    (FOLDER / "ray").symlink_to(files)
    port, dashboard = free_ports(2)
    clients = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        **clients,
        _MARK: str(FOLDER),
        # A submitted job's `python` is this one.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    address, url = f"{_HEAD}:{port}", f"http://127.0.0.1:{dashboard}"
    head = ["--head", "--port", str(port), "--num-cpus", "0", "--num-gpus", "0"]
    head += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
    nodes = [_start_node(_HEAD, files, head, environment)]
    gpus = _gpus()
    for number, worker in enumerate(_WORKERS):
        options = ["--address", address, "--num-cpus", str(max(1, (os.cpu_count() or 1) // len(_WORKERS)))]
        share = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[number :: len(_WORKERS)])}
        nodes.append(_start_node(worker, files, options, {**environment, **share}))
    os.environ.update(clients)
    _wait_until_up(url, nodes)
    variables = {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": url, **clients}
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    join.write_text(f"export {words}\n")


def _start_node(
    address: str, files: Path, options: list[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a node with files of its own, as on a machine of its own: their sockets would have the same names."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address", address, "--temp-dir", str(files / address), "--dashboard-agent-listen-port", "0"]
    command += ["--object-store-memory", str(psutil.virtual_memory().total // 10)]
    with (FOLDER / f"{address}.log").open("wb") as log:
        return subprocess.Popen(
            [*command, *options], cwd=FOLDER, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def _wait_until_up(url: str, nodes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until the dashboard, which submitted jobs need, is up and says that all nodes are."""
    from ray.util.state import list_nodes  # only now, as Ray reads what it is told of the token when it is imported
    from ray.util.state.exception import RayStateApiException

    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            if len(list_nodes(url, filters=[("state", "=", "ALIVE")])) == len(nodes):
                return
        except (ConnectionError, RayStateApiException, RuntimeError):
            pass  # not yet
        if time.monotonic() > deadline or any(node.poll() is not None for node in nodes):
            logs = "".join(log.read_text() for log in sorted(FOLDER.glob("*.log")))
            sys.exit(f"{logs}\nfailed: the cluster did not start; what its nodes said stands above")
        time.sleep(0.5)


def _gpus() -> list[str]:
    """The GPUs that the cluster may use, for its workers to share."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return [gpu for gpu in visible.split(",") if gpu]


def _processes() -> set[psutil.Process]:
    """The living processes of the cluster."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == str(FOLDER) and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
        except psutil.Error:  # of another user, or it has just ended
            continue
    return found


if __name__ == "__main__":
    run_job(main)
