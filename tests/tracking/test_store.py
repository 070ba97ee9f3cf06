from __future__ import annotations

import http.server
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import botocore.exceptions
import pytest
import requests
from boto3.exceptions import S3UploadFailedError

from distsens.errors import InputError
from distsens.tracking import TrackedRun, check_run, check_tracking, is_store_error
from distsens.tracking.store import absolute_uri, artifact_location, connect, open_experiment

if TYPE_CHECKING:
    from tests.tracking.conftest import Store


@pytest.fixture
def web_server() -> Iterator[str]:
    """An HTTP server that knows nothing of MLflow."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def refusal(uri: str, *, experiment: str = "tests", artifact_root: str | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        check_tracking(uri, experiment=experiment, artifact_root=artifact_root)
    assert "\n" not in str(caught.value)
    return caught.value


def test_importing_the_room_does_not_import_what_is_heavy():
    code = (
        "import sys, distsens.tracking; print([name for name in ('mlflow', 'torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert done.stdout == "[]\n", done.stderr


def _environment() -> dict[str, str]:
    import distsens

    return {**os.environ, "PYTHONPATH": str(Path(distsens.__file__).parents[1])}


def test_a_whole_run_on_a_new_store_says_nothing_on_the_terminal(store: Store):
    assert store.first_driver_output == ""


def test_a_store_that_answers_is_accepted_whether_or_not_the_experiment_exists(store: Store):
    check_tracking(store.uri, experiment="first")
    check_tracking(store.uri, experiment="never seen")
    assert store.client.get_experiment_by_name("never seen") is None


def test_checking_a_new_sqlite_store_creates_nothing(tmp_path: Path):
    check_tracking(f"sqlite:///{tmp_path}/a/b/mlflow.db", experiment="tests")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_is_accepted_and_stays_empty(tmp_path: Path):
    file = tmp_path / "mlflow.db"
    sqlite3.connect(file).close()
    check_tracking(f"sqlite:///{file}", experiment="tests")
    assert file.stat().st_size == 0


@pytest.mark.parametrize("folder", ["/data/mlruns", "file:///data/mlruns", "file:/data/mlruns"])
def test_a_plain_folder_is_refused_with_the_address_to_write_instead(folder: str):
    assert "write sqlite:////data/mlruns/mlflow.db;" in refusal(folder).allowed


@pytest.mark.parametrize(
    "uri",
    ["", "ftp://host/x", "http://", "http://host:port", "sqlite://", "sqlite:///:memory:"],
)
def test_what_is_no_address_of_a_store_is_refused(uri: str):
    error = refusal(uri)
    assert error.field == "tracking.uri"
    assert "sqlite:////absolute/path/mlflow.db" in error.allowed


def test_a_file_that_no_file_system_can_have_is_refused():
    assert refusal(f"sqlite:///{'a' * 300}/mlflow.db").allowed == "no file's name is longer than 255 bytes"


def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    file = tmp_path / "mlflow.db"
    file.write_text("not a database, though long enough to be taken for one\n" * 100)
    assert "file is not a database" in refusal(f"sqlite:///{file}").allowed


def test_a_database_of_something_else_is_refused(tmp_path: Path):
    file = tmp_path / "shop.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
    assert "other tables" in refusal(f"sqlite:///{file}").allowed


def test_a_database_below_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    assert "not a folder" in refusal(f"sqlite:///{tmp_path}/file/mlflow.db").allowed


def test_a_server_that_is_not_there_is_refused_in_seconds():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        started = time.monotonic()
        error = refusal(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert "Connection refused" in error.allowed
    assert time.monotonic() - started < 5


def test_a_server_that_never_answers_is_refused_in_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("distsens.tracking.store._PATIENCE_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        error = refusal(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "timed out" in error.allowed
    assert time.monotonic() - started < 5


def test_a_server_that_is_not_mlflow_is_refused(web_server: str):
    assert "does not answer as an MLflow server" in refusal(web_server).allowed


def test_the_check_leaves_mlflows_patience_as_it_was(web_server: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    refusal(web_server)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


@pytest.mark.parametrize(
    "uri", ["http://me:secret@127.0.0.1:1", "ftp://me:secret@host/x", "http://me:secret@host:port"]
)
def test_a_refusal_never_shows_the_password(uri: str):
    assert "secret" not in str(refusal(uri))


def test_a_deleted_experiment_is_refused(store: Store):
    client = store.client
    client.delete_experiment(client.create_experiment("deleted"))
    error = refusal(store.uri, experiment="deleted")
    assert (error.field, error.value) == ("tracking.experiment", "deleted")


def test_a_database_that_is_no_file_needs_an_artifact_root():
    uri = "postgresql://me@host/mlflow"
    assert refusal(uri).field == "tracking.artifact_root"
    assert artifact_location(uri, "s3://bucket/runs") == "s3://bucket/runs"


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert absolute_uri(f"sqlite:///{tmp_path}/mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert artifact_location("sqlite:///runs/mlflow.db", None) == f"file://{tmp_path}/runs/artifacts"
    assert artifact_location("http://host:5000", "artifacts") == f"file://{tmp_path}/artifacts"
    assert artifact_location("http://host:5000", None) is None


def test_an_address_keeps_its_password_and_path():
    for uri in ("postgresql://me:s%40cret@host:5432/mlflow", "https://me:secret@host/behind/a/proxy"):
        assert absolute_uri(uri) == uri


def test_an_experiment_is_opened_once(store: Store):
    client = connect(store.uri)
    first = open_experiment(client, "opened twice", None)
    assert open_experiment(client, "opened twice", None) == first


def test_nothing_is_written_to_the_current_folder(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    elsewhere, artifacts = tmp_path / "cwd", tmp_path / "artifacts"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = TrackedRun.create(
        store.uri, experiment="own folder", name="a", params={}, tags={}, artifact_root=str(artifacts)
    )
    run.log_text("notes/a.txt", "text")
    run.finish("FINISHED")
    assert list(elsewhere.iterdir()) == []
    assert [file.read_text() for file in artifacts.rglob("a.txt")] == ["text"]


def test_a_run_is_checked_without_reopening_it(store: Store) -> None:
    run = TrackedRun.create(store.uri, experiment="checked", name="one", params={}, tags={}, artifact_root=None)
    run.finish("KILLED")
    check_run(store.uri, run.run_id)
    assert store.client.get_run(run.run_id).info.status == "KILLED"
    with pytest.raises(InputError, match=r"tracking.run_id: got '0+'; the store holds no such run"):
        check_run(store.uri, "0" * 32)
    store.client.delete_run(run.run_id)
    with pytest.raises(InputError, match="it was deleted"):
        check_run(store.uri, run.run_id)


def test_a_store_that_is_not_there_yet_holds_no_run_and_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no store yet"):
        check_run(f"sqlite:///{tmp_path}/mlflow.db", "0" * 32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://s3"),
        S3UploadFailedError("503"),
        requests.HTTPError("502 Server Error: Bad Gateway"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_keeps_the_artifacts_is_the_stores_too(error: Exception):
    assert is_store_error(error)
    assert not is_store_error(KeyError("layer"))
