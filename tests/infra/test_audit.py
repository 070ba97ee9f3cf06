"""The audit of the locked dependencies, against an OSV server that knows a planted vulnerability."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytest.importorskip("pip_audit")

AUDIT = Path(__file__).resolve().parents[2] / ".ci" / "audit.py"
LOCKED = "".join(f"{name} \\\n    --hash=sha256:{'0' * 64}\n" for name in ("idna==3.20", "six==1.17.0"))


class Advisories(BaseHTTPRequestHandler):
    """Answers as https://osv.dev does: with what it knows of a package, whatever its version."""

    known: dict[str, list[str]]
    """Versions that fix a package's only vulnerability."""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]
        answer = {"vulns": [self.advisory(query)]} if query["name"] in self.known else {}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def advisory(self, package: dict[str, str]) -> dict[str, Any]:
        events = [{"introduced": "0"}, *({"fixed": version} for version in self.known[package["name"]])]
        affected = {"package": package, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
        return {"id": "PYSEC-1", "affected": [affected]}

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    file = tmp_path / "requirements.lock"
    file.write_text(LOCKED)
    return file


@pytest.fixture
def audit(lock: Path) -> Callable[[str], tuple[int, list[str]]]:
    def run(server: str) -> tuple[int, list[str]]:
        command = [sys.executable, str(AUDIT), server, str(lock)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    return run


@pytest.fixture
def knowing(audit: Callable[[str], tuple[int, list[str]]]) -> Iterator[Callable[..., tuple[int, list[str]]]]:
    """Audit with a server that knows these packages' vulnerabilities."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    Thread(target=server.serve_forever, daemon=True).start()

    def run(**known: list[str]) -> tuple[int, list[str]]:
        Advisories.known = known
        return audit(f"http://127.0.0.1:{server.server_port}")

    yield run
    server.shutdown()
    server.server_close()


def test_a_vulnerability_that_a_newer_version_fixes_fails_the_audit(knowing: Any) -> None:
    assert knowing(idna=["4.0"]) == (1, ["idna 3.20: PYSEC-1: fixed in 4.0", "2 of 2 locked dependencies audited"])


def test_a_vulnerability_that_nothing_fixes_is_told_and_stops_nobody(knowing: Any) -> None:
    code, lines = knowing(six=[])
    assert (code, lines[0]) == (0, "six 1.17.0: PYSEC-1: no version without it yet")


def test_without_vulnerabilities_it_says_how_much_was_audited(knowing: Any) -> None:
    assert knowing() == (0, ["2 of 2 locked dependencies audited"])


def test_without_a_source_of_advisories_one_line_says_that_nothing_was_audited(audit: Any) -> None:
    code, (line,) = audit("http://127.0.0.1:1")
    assert code == 0
    assert line == "dependencies are not audited: http://127.0.0.1:1: <urlopen error [Errno 111] Connection refused>"


def test_a_lock_file_that_cannot_be_audited_fails_the_audit(knowing: Any, lock: Path) -> None:
    lock.write_text("idna>=3\n")
    code, (first, *_) = knowing()
    assert code == 1
    assert first.startswith("the audit failed: ")
