"""Processes that outlive the command that starts them, known by a file in a folder until they are stopped."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

_PATIENCE_S = 120.0
_SECONDS_TO_END = 20.0


class StackError(Exception):
    """What went wrong, in one line for whoever runs the stack."""


class Daemons:
    """The daemons of a folder: of each, ``NAME.pid`` says which process it is, and ``NAME.log`` what it wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        """Start a daemon in a session of its own, as another user if one is named."""
        identity = {} if user is None else _identity(user)
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                **identity,  # type: ignore[call-overload]
            )
        # Numbers of processes are used again; together with the time of its start it is this one.
        started = psutil.Process(process.pid).create_time()
        self._file(name).write_text(json.dumps({"pid": process.pid, "started": started}))

    def process(self, name: str) -> psutil.Process | None:
        """The daemon, if it runs."""
        try:
            known = json.loads(self._file(name).read_text())
            process = psutil.Process(known["pid"])
            running = process.create_time() == known["started"] and process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None
        return process if running else None

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until the daemon is ready; `StackError` when it ends or takes too long."""
        deadline = time.monotonic() + _PATIENCE_S
        while not ready():
            if self.process(name) is None:
                raise StackError(f"{name} ended: {self._last_words(name)} ({self.log(name)})")
            if time.monotonic() > deadline:
                raise StackError(f"{name} is not ready after {_PATIENCE_S:.0f} s; see {self.log(name)}")
            time.sleep(0.1)

    def stop(self, *names: str, how: signal.Signals = signal.SIGTERM, patience_s: float = _SECONDS_TO_END) -> bool:
        """End daemons and all that they started, by force if they do not end by themselves; whether any ran."""
        running = [process for name in names if (process := self.process(name)) is not None]
        family: list[psutil.Process] = []
        for process in running:
            with suppress(psutil.NoSuchProcess):
                family += [*process.children(recursive=True), process]
                process.send_signal(how)
        for one in _still_running(family, 0.0 if how is signal.SIGKILL else patience_s):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        _still_running(family, _SECONDS_TO_END)
        for name in names:
            self._file(name).unlink(missing_ok=True)
        return bool(running)

    def log(self, name: str) -> Path:
        """The file of what the daemon writes."""
        return self.folder / f"{name}.log"

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.pid"

    def _last_words(self, name: str) -> str:
        lines = [line for line in self.log(name).read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else "it wrote nothing"


def _still_running(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until they have ended, so long at most; those that have not."""
    deadline = time.monotonic() + seconds
    while running := [one for one in processes if not _has_ended(one)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return running


def _has_ended(process: psutil.Process) -> bool:
    """Whether it has; of one that we started ourselves, nothing is left then."""
    with suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _identity(user: str) -> dict[str, object]:
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def run(command: Sequence[str | Path], user: str | None = None, given: str = "") -> str:
    """Run a program to its end, as another user if one is named; what it wrote. `StackError` if it fails."""
    identity = {} if user is None else _identity(user)
    words = [str(word) for word in command]
    done = subprocess.run(  # type: ignore[call-overload]
        words, input=given, capture_output=True, text=True, timeout=_PATIENCE_S, check=False, cwd="/", **identity
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise StackError(f"{words[0]}: {said}")
    return str(done.stdout)
