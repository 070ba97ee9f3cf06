"""Processes that begin as forks of one that has imported what they all need, which takes each many seconds else.

`python forks.py serve SOCKET` is that process. `python forks.py SOCKET SCRIPT ...` stands for `python SCRIPT ...`: the
script runs in a fork, with the caller's environment, folder and files, and the caller ends as it does. `start` is the
same from within Python, and Ray starts the workers so of a driver whose environment has the variables of `fork_server`.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

SOCKET = "DISTSENS_TEST_FORKS"
"""Variable that names the server's socket; without it processes are started as ever."""

# Ray itself is not among them: it keeps what it reads of the environment when it is imported.
_MODULES = (
    "aiohttp",
    "alembic.command",
    "grpc",
    "matplotlib.pyplot",
    "mlflow.pytorch",
    "mlflow.store.tracking.sqlalchemy_store",
    "opentelemetry.exporter.prometheus",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "sklearn.datasets",
    "sympy.tensor.tensor",
    "torch._dynamo",
    "torch.export._trace",
    "torchvision",
)


@contextmanager
def fork_server() -> Iterator[dict[str, str]]:
    """Variables of a process that is to be a fork, as its Ray workers are; all forks end with the server."""
    from processes import end_processes_with

    with TemporaryDirectory(prefix="ds-", dir="/tmp") as folder:
        path = f"{folder}/forks"
        words = [sys.executable, __file__, "serve", path]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        server = subprocess.Popen(
            words,
            # Forks of a process that has asked CUDA's driver for GPUs could not use them; NVML may be asked.
            env={**environment, SOCKET: path, "PYTHONUNBUFFERED": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            hook = {"RAY_RUNTIME_ENV_HOOK": "forks.workers_are_forked", "PYTHONPATH": str(Path(__file__).parent)}
            yield {SOCKET: path, **hook}
        finally:
            end_processes_with(path)
            server.communicate()


def workers_are_forked(runtime_env: Mapping[str, Any] | None) -> dict[str, Any]:
    """Ray's hook: the environment of a driver's workers, with what starts them instead of Python."""
    return {**(runtime_env or {}), "py_executable": f"{sys.executable} -I {__file__} {os.environ[SOCKET]}"}


def start(words: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> subprocess.Popen[str] | Fork:
    """`python WORDS` in a session of its own, a fork where the environment says so; its output can be read."""
    if SOCKET not in env:
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    read, write = os.pipe()
    with open(os.devnull) as nothing:
        fork = Fork(words, env=env, cwd=str(cwd), server=env[SOCKET], files=(nothing.fileno(), write, write))
    os.close(write)
    fork.stdout = os.fdopen(read)
    return fork


class Fork:
    """A fork that runs a script, in a session of its own; like `subprocess.Popen` as far as that goes."""

    def __init__(
        self, words: Sequence[str], *, env: Mapping[str, str], cwd: str, server: str, files: Sequence[int]
    ) -> None:
        self._words = words
        self.stdout: IO[str] | None = None
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(server)
        socket.send_fds(self._connection, [b"."], files)
        self._connection.sendall(json.dumps({"words": list(words), "env": dict(env), "cwd": cwd}).encode())
        self._connection.shutdown(socket.SHUT_WR)
        self.pid = self._number()

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._code(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code when it has ended."""
        if (code := self._code(timeout)) is None:
            raise subprocess.TimeoutExpired(self._words, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def _code(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = self._number()
        return self.returncode

    def _number(self) -> int:
        (number,) = array.array("i", self._connection.recv(4, socket.MSG_WAITALL))
        return number


def _serve(path: str) -> list[str]:
    """Fork for whoever asks. It returns in the forks alone, with the words of the command."""
    import gc
    import importlib

    for name in _MODULES:
        importlib.import_module(name)
    gc.freeze()  # what is there stays there, and need not be copied to be looked at
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            # Whoever started this closes its standard input when he ends, however that may be.
            if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
                sys.exit()
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile() as stream:
        request = json.load(stream)
    if process := os.fork():
        _keep(process, connection, files)
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    words: list[str] = request["words"]
    return words


def _keep(process: int, connection: socket.socket, files: Sequence[int]) -> None:
    """Tell the asker the id of its fork and, when that has ended, its exit code; then end."""
    for file in files:
        os.close(file)
    with suppress(BrokenPipeError):  # the asker was killed
        connection.sendall(array.array("i", [process]))
        _, status = os.waitpid(process, 0)
        connection.sendall(array.array("i", [os.waitstatus_to_exitcode(status)]))
    os._exit(0)


def _run(script: str, *arguments: str) -> None:
    """Be `python SCRIPT ARGUMENTS`, and end the process."""
    import atexit
    import runpy
    import tempfile
    import threading
    import traceback

    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(script)
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    tempfile.tempdir = None  # it was of another environment
    code: Any = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    # As Python ends, but for taking apart all that was imported.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _run(*_serve(sys.argv[2]))
    process = Fork(sys.argv[2:], env=os.environ, cwd=os.getcwd(), server=sys.argv[1], files=(0, 1, 2))
    ended = process.wait()
    sys.exit(ended if ended >= 0 else 128 - ended)
