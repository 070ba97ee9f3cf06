"""The S3 server of `make stack` for tests: Ceph on a port of its own, with an empty store that is gone afterwards."""

from __future__ import annotations

import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ceph import Ceph, missing

from distsens.distributed.ports import free_ports

__all__ = ["S3Server", "missing", "running", "wait_until"]

_SIZE = 4 << 30
_PATIENCE_S = 60.0


class S3Server(Ceph):
    """A running server and its first user."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder, port)
        self.access_key, self.secret_key = secrets.token_hex(10), secrets.token_hex(20)

    @property
    def environment(self) -> dict[str, str]:
        """The AWS variables of a process that may use the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }


@contextmanager
def running() -> Iterator[S3Server]:
    """Start a server, and leave nothing of it behind."""
    (port,) = free_ports(1)
    folder = Path(tempfile.mkdtemp(prefix="ceph-", dir="/tmp"))
    server = S3Server(folder, port)
    try:
        server.start(_SIZE)
        server.add_user("tests", server.access_key, server.secret_key)
        yield server
    finally:
        server.stop(signal.SIGKILL)
        shutil.rmtree(folder)


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until it holds, a minute at most."""
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it has not happened within a minute"
        time.sleep(0.1)
