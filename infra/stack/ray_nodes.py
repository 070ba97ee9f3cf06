"""A Ray head that takes jobs but does no work, and the workers, each a node of its own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from daemons import Daemons

from distsens.distributed.ports import free_ports

WORKERS = 2
_SECONDS_TO_END_JOBS = 20.0
_SECONDS_TO_END_NODES = 5.0


class RayNodes:
    """The nodes. Their folder's path must be short, because Ray puts sockets there."""

    def __init__(self, folder: Path, daemons: Daemons, port: int, dashboard_port: int, token: Path) -> None:
        self.address = f"127.0.0.1:{port}"
        self.dashboard = f"http://127.0.0.1:{dashboard_port}"
        self._folder = folder
        self._daemons = daemons
        self._token = token
        self._names = ["ray-head", *(f"ray-worker-{number}" for number in range(1, WORKERS + 1))]

    def start(self, environment: Mapping[str, str], cpus: int) -> None:
        """Start the nodes, each worker with so many CPUs, and wait until the dashboard sees them all."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        port, dashboard_port = self.address.rpartition(":")[2], self.dashboard.rpartition(":")[2]
        head = ["--head", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
        head += ["--num-cpus=0"]
        worker = [f"--address={self.address}", f"--num-cpus={cpus}"]
        for seen, (name, agent) in enumerate(zip(self._names, free_ports(len(self._names)), strict=True), start=1):
            command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--node-ip-address=127.0.0.1"]
            command += [*(head if seen == 1 else worker), f"--dashboard-agent-listen-port={agent}"]
            # A folder for each: in a common one, nodes lay a job's files anew under the feet of the job that runs.
            command += [f"--temp-dir={self._folder / str(seen)}", "--disable-usage-stats"]
            self._daemons.start(name, command, environment)
            self._daemons.wait(name, partial(self._sees, seen))

    def runs(self) -> bool:
        """Whether all of them run."""
        return all(self._daemons.process(name) is not None for name in self._names)

    def stop(self) -> bool:
        """End their jobs, which then say so to MLflow, and the nodes; whether any ran."""
        if self._daemons.process("ray-head") is not None:
            self._end_jobs()
        return self._daemons.stop(*self._names, patience_s=_SECONDS_TO_END_NODES)

    def _end_jobs(self) -> None:
        deadline = time.monotonic() + _SECONDS_TO_END_JOBS
        told: set[str] = set()
        while time.monotonic() < deadline:
            jobs = self._ask("/api/jobs/") or []
            running = {job["submission_id"] for job in jobs if job["status"] in ("PENDING", "RUNNING")} - {None}
            if not running:
                return
            for job in running - told:
                self._ask(f"/api/jobs/{job}/stop", "POST")
            told |= running
            time.sleep(0.2)

    def _sees(self, count: int) -> bool:
        """Whether the dashboard sees so many nodes that live."""
        answer = self._ask("/nodes?view=summary") or {"data": {"summary": []}}
        alive = [node for node in answer["data"]["summary"] if node.get("raylet", {}).get("state") == "ALIVE"]
        return len(alive) == count

    def _ask(self, path: str, method: str = "GET") -> Any:
        """What the dashboard answers, None if it does not."""
        headers = {"Authorization": f"Bearer {self._token.read_text()}"}
        try:
            with urlopen(Request(self.dashboard + path, headers=headers, method=method), timeout=10) as answer:
                return json.load(answer)
        except (HTTPError, URLError, TimeoutError, ConnectionError):
            return None
