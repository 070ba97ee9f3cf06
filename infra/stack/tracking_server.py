"""MLflow's server: runs in PostgreSQL, artifacts in S3, and a log-in before both."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from daemons import Daemons

ADMINISTRATOR = "admin"
_NAME = "mlflow"
# MLflow makes a process for each, of a quarter of a gigabyte.
_PROCESSES = 2


class TrackingServer:
    """A server on loopback. Database, bucket and secrets come by its environment, which no list of processes shows."""

    def __init__(self, daemons: Daemons, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._daemons = daemons
        self._port = port

    def start(self, environment: Mapping[str, str], password: str) -> None:
        """Start the server and wait until it lets its administrator in."""
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self._port}"]
        command += ["--app-name=basic-auth", f"--workers={_PROCESSES}"]
        self._daemons.start(_NAME, command, environment)
        self._daemons.wait(_NAME, lambda: self._lets_in(password))

    def runs(self) -> bool:
        """Whether it runs."""
        return self._daemons.process(_NAME) is not None

    def stop(self) -> bool:
        """End it; whether it ran."""
        return self._daemons.stop(_NAME)

    def _lets_in(self, password: str) -> bool:
        secret = base64.b64encode(f"{ADMINISTRATOR}:{password}".encode()).decode()
        request = Request(
            f"{self.url}/api/2.0/mlflow/experiments/search",
            json.dumps({"max_results": 1}).encode(),
            {"Authorization": f"Basic {secret}", "Content-Type": "application/json"},
        )
        try:
            urlopen(request, timeout=10).close()
        except (HTTPError, URLError, TimeoutError, ConnectionError):
            return False
        return True


def missing() -> list[str]:
    """The packages that are not installed."""
    from importlib.util import find_spec

    return [name for name in ("flask_wtf", "psycopg") if find_spec(name) is None]
