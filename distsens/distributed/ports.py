"""Ports for servers that are told theirs before they start."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

# Below are those of well-known services and of Ray's workers (10002 to 19999).
_FIRST = 20000
_GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_GIVEN_ELSEWHERE = 49152  # as RFC 6335 has it


def free_ports(count: int) -> list[int]:
    """TCP ports of loopback that nobody uses, each another.

    They are not of those that the system gives to whoever opens a connection: one of these may be taken by anybody's
    connection before a server that was told it listens.
    """
    found: list[int] = []
    candidates = range(_FIRST, max(_FIRST, _first_given()))
    for port in random.SystemRandom().sample(candidates, len(candidates)):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"of the ports from {_FIRST} to {_first_given() - 1} fewer than {count} are free")


def _first_given() -> int:
    """The first port that the system gives to whoever opens a connection."""
    try:
        return int(_GIVEN.read_text().split()[0])
    except OSError:
        return _FIRST_GIVEN_ELSEWHERE
