import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import distsens
from distsens.storage import Place, open_place

WRITER = Path(__file__).with_name("writer_process.py")


Variables = Mapping[str, str]


@pytest.fixture(params=["moto", "ceph"])
def server(request: pytest.FixtureRequest) -> Variables:
    """The AWS variables for each of the S3 servers."""
    return variables(request, request.param)


def variables(request: pytest.FixtureRequest, name: str) -> Variables:
    server = request.getfixturevalue(name)
    return server if name == "moto" else server.environment


@pytest.fixture
def bucket(server: Variables, use_s3: Callable[[Variables], str]) -> str:
    """URL of an empty bucket on each of the S3 servers."""
    return use_s3(server)


@pytest.fixture(scope="session")
def roots() -> dict[str, Place]:
    """A bucket on each server for all tests that are content with a prefix in one: clients take time to make."""
    return {}


@pytest.fixture(params=["folder", "moto", "ceph"])
def place(
    request: pytest.FixtureRequest,
    use_aws: Callable[[Variables], None],
    use_s3: Callable[[Variables], str],
    roots: dict[str, Place],
    tmp_path: Path,
) -> Place:
    """An empty place of each kind."""
    kind = request.param
    if kind == "folder":
        return open_place(str(tmp_path / "place"))
    if kind in roots:
        use_aws(variables(request, kind))
    else:
        roots[kind] = open_place(use_s3(variables(request, kind)))
    return roots[kind].child(f"{secrets.token_hex(8)}/prefix")


@pytest.fixture
def start_writer() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `writer_process.py` with the given arguments; whatever still runs at the end of the test is killed.

    Waits until a writer that runs for ever has written its first file or epoch.
    """
    writers: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "PYTHONPATH": str(Path(distsens.__file__).parents[1])}

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, str(WRITER), *map(str, arguments)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        writers.append(writer)
        assert writer.stdout is not None
        line = writer.stdout.readline()
        assert line == ("" if "save-once" in arguments else "ready\n")
        return writer

    yield start
    for writer in writers:
        writer.kill()
        writer.communicate()
