"""A Ray of a job's own, on this machine: it listens on loopback, asks for a token, and ends with the job."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

import psutil
import ray

from distsens.distributed.ray_internals import loopback_stays, sessions_of_their_own
from distsens.distributed.signals import signals_stay
from distsens.errors import UnavailableError

_TRIES = 2
_SECONDS_TO_END = 5.0
_LONGEST_REASON = 200


def start_local_ray(cpus: int, say: Callable[[str], None]) -> Path:
    """Start a Ray with so many cores and connect this process to it; the folder of its logs, which Ray leaves.

    On a machine that is busy Ray gives up waiting for parts of itself, and so it is tried once more.

    Raises
    ------
    UnavailableError : it did not start; nothing of it runs.
    """
    _have_token()
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo listens where the host's name says
    started: list[Any] = []
    for tries_left in reversed(range(_TRIES)):
        before = _children()
        try:
            with loopback_stays(), sessions_of_their_own():
                signals_stay(
                    lambda: started.append(
                        ray.init(
                            address="local",
                            num_cpus=cpus,
                            include_dashboard=False,
                            log_to_driver=False,
                            logging_level=logging.ERROR,
                        )
                    )
                )
        except Exception as error:  # Ray raises mere Exceptions here
            ray.shutdown()
            _end(_children() - before)
            reason = _reason(error)
            if not tries_left:
                raise UnavailableError(f"Ray does not start on this machine: {reason}") from error
            say(f"Ray did not start ({reason}); it is tried once more")
        except BaseException:
            ray.shutdown()
            _end(_children() - before)
            raise
        else:
            return Path(started[-1].address_info["session_dir"])
    raise AssertionError("the last try returns or raises")


def _have_token() -> None:
    """A token for this process's Ray alone, which no file holds: Ray would write one that every user may read."""
    given = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token" and not any(os.environ.get(one) for one in given):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _reason(error: Exception) -> str:
    """What went wrong, of all that Ray quotes and advises, in a line."""
    words = " ".join(str(error).split()).rpartition("Check failed: ")[2]
    return shorten(words, _LONGEST_REASON, placeholder=" ...") or type(error).__name__


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _end(processes: set[psutil.Process]) -> None:
    """End what is left of a Ray that Ray itself does not know of, as it never was whole."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=_SECONDS_TO_END)
