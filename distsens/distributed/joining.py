"""Joining a cluster that runs: whether one answers where RAY_ADDRESS says, which Ray itself waits for in silence."""

from __future__ import annotations

import logging
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import ray

from distsens.distributed.ray_internals import found_address, is_head, loopback_stays
from distsens.distributed.signals import signals_stay
from distsens.errors import InputError
from distsens.redaction import MASK

_ADDRESS = "RAY_ADDRESS"
_SECONDS_TO_ANSWER = 20.0
_HOW = "name its head as HOST:PORT, as in 10.0.0.1:6379, or auto for one on this machine"
_SUBMIT = "submit the job, by cluster/submit.py, or "


def address_to_join() -> str | None:
    """What RAY_ADDRESS says, or None where a Ray of one's own is to be started."""
    address = os.environ.get(_ADDRESS, "").strip()
    if "@" in address:
        _refuse(f"{MASK}@{address.rpartition('@')[2]}", f"a token does not belong into it; {_HOW}")
    return None if address in ("", "local") else address


def check_answers(address: str) -> None:
    """Refuse, within seconds, an address where no cluster answers."""
    host, port = _parsed(address)
    began = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=_SECONDS_TO_ANSWER):
            pass
        if not is_head(host, port, _SECONDS_TO_ANSWER - (time.monotonic() - began)):
            _refuse(address, f"what answers on port {port} of {host} is no Ray head, whose port is 6379 unless chosen")
    except TimeoutError:
        _refuse(address, f"{host} port {port} has not answered for {_SECONDS_TO_ANSWER:.0f} seconds")
    except OSError as error:
        _refuse(address, f"{host} port {port}: {error.strerror or error}")


def join(address: str, say: Callable[[str], None]) -> None:
    """Connect this process to the cluster there; refused where that cannot be."""
    say(f"joining the Ray cluster at {address}")
    check_answers(address)
    warn_of_token(say)
    try:
        with loopback_stays():
            signals_stay(lambda: ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR))
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        # Of another Ray or Python it names both in lines of their own.
        _refuse(address, " ".join(str(error).split()))


def _parsed(address: str) -> tuple[str, int]:
    scheme, mark, rest = address.partition("://")
    if scheme == "ray" and mark:
        _refuse(address, f"a job cannot be driven by way of Ray's client: {_SUBMIT}on a machine of the cluster {_HOW}")
    if mark:
        dashboard = f"{scheme}://{rest}" if scheme in ("http", "https") else "the dashboard"
        _refuse(address, f"this is no address of a head; with {dashboard} {_SUBMIT}{_HOW}")
    if address == "auto":
        try:
            with loopback_stays():
                address = found_address()
        except (ConnectionError, ValueError) as error:
            _refuse("auto", " ".join(str(error).split()))
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or parts.path:
        _refuse(address, _HOW)
    return host, port


def _refuse(address: str, reason: str) -> NoReturn:
    raise InputError(_ADDRESS, address, f"no Ray cluster can be joined there: {reason}") from None


def warn_of_token(say: Callable[[str], None]) -> None:
    """Ray makes the file of its token such that every user of the machine may read it."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        others = stat.S_IMODE(file.stat().st_mode) & 0o077
    except OSError:
        return
    if others and os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and not os.environ.get("RAY_AUTH_TOKEN"):
        say(f"warning: others may read Ray's token in {file}: chmod 600 it")
