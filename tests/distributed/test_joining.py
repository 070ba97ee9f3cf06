"""Where no cluster answers, a job says so within seconds, and begins nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
import ray

from distsens.distributed import joining
from distsens.distributed.cluster import check_cluster, check_room, connected
from distsens.distributed.joining import address_to_join, check_answers
from distsens.errors import InputError
from distsens.experiment import Workers


@pytest.fixture
def nobody() -> Iterator[str]:
    """A port that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """Whoever listens there says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def web() -> Iterator[str]:
    """A web server, which speaks of errors in its log."""

    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def other_grpc() -> Iterator[str]:
    """Speaks as Ray's servers do, and is none that knows a cluster, as Ray's client server."""
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("listens", "says"),
    [
        ("nobody", "Connection refused"),
        ("silent", "is no Ray head|has not answered for 2 seconds"),
        ("web", "is no Ray head"),
        ("other_grpc", "is no Ray head"),
    ],
)
def test_where_no_head_listens_that_is_one_line_within_seconds(
    listens: str, says: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = request.getfixturevalue(listens)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(joining, "_SECONDS_TO_ANSWER", 2.0)
    began = time.monotonic()
    told: list[str] = []
    line = f"^RAY_ADDRESS: got '{address}'; no Ray cluster can be joined there: .*({says})"
    with pytest.raises(InputError, match=line):
        check_cluster(Workers(num=500), tell=told.append)
    assert time.monotonic() - began < 10
    assert told == [f"asking for the Ray cluster at {address}"]


def test_a_host_that_drops_packets_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a full queue takes no further connection, and does not say so either."""
    monkeypatch.setattr(joining, "_SECONDS_TO_ANSWER", 1.0)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        with pytest.raises(InputError, match="has not answered for 1 seconds"):
            check_answers(f"127.0.0.1:{port}")
        for one in waiting:
            one.close()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nonsense", "name its head as HOST:PORT"),
        ("127.0.0.1:99999", "name its head as HOST:PORT"),
        ("127.0.0.1:", "name its head as HOST:PORT"),
        (":6379", "name its head as HOST:PORT"),
        ("[::1:6379", "name its head as HOST:PORT"),
        ("127.0.0.1:6379/x", "name its head as HOST:PORT"),
        ("ray://127.0.0.1:10001", "by way of Ray's client: submit the job, by cluster/submit.py"),
        ("http://127.0.0.1:8265", "with http://127.0.0.1:8265 submit the job, by cluster/submit.py"),
        ("https://ray.example.org", "submit the job, by cluster/submit.py"),
        ("nobody.invalid:6379", "nobody.invalid port 6379: "),
    ],
)
def test_what_is_no_address_of_a_head_says_what_one_is(address: str, says: str) -> None:
    with pytest.raises(InputError, match="no Ray cluster can be joined there") as refused:
        check_answers(address)
    assert says in str(refused.value)


@pytest.mark.parametrize("address", ["", " ", "local"])
def test_no_address_is_a_ray_of_ones_own(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert address_to_join() is None


def test_joining_is_said_before_it_is_tried(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    said: list[str] = []
    with pytest.raises(InputError, match="Connection refused"), connected(said.append):
        pytest.fail("there is nothing to join")
    assert said == [f"joining the Ray cluster at {nobody}"]
    assert not ray.is_initialized()


@pytest.fixture
def address_of_running(running: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "HOME", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, running[name])
    return running["RAY_ADDRESS"]


@pytest.mark.ray
def test_a_dry_run_asks_the_cluster_for_room(address_of_running: str) -> None:
    said: list[str] = []
    check_room([(Workers(num=3), 0)], said.append)
    assert said == [f"joining the Ray cluster at {address_of_running}"]
    with pytest.raises(InputError, match="got 500; the cluster has room for 3 workers of 1 CPU each"):
        check_room([(Workers(num=3), 0), (Workers(num=500), 0)], said.append)
    assert not ray.is_initialized()


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o644, True)])
def test_a_token_that_others_may_read_is_warned_of(
    mode: int, warned: bool, tmp_path: Path, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.touch()
    token.chmod(mode)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    said: list[str] = []
    joining.warn_of_token(said.append)
    assert said == [f"warning: others may read Ray's token in {token}: chmod 600 it"] * warned


def test_a_token_in_the_address_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "hunter2@10.0.0.1:6379")
    with pytest.raises(InputError, match=r"got '\*\*\*@10\.0\.0\.1:6379'") as raised:
        address_to_join()
    assert "hunter2" not in str(raised.value)
