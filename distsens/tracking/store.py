"""The MLflow store behind an address: checked before anything starts, opened without a word on the terminal."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

from distsens.errors import InputError
from distsens.redaction import without_secrets
from distsens.tracking.outage import PatientClient, environment
from distsens.words import fault_of_path, fault_of_text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from sqlalchemy import URL, Connection

_DATABASES = ("sqlite", "postgresql", "mysql")
_ALLOWED = (
    "allowed: sqlite:////absolute/path/mlflow.db, http://host:port, https://host, "
    "postgresql://user:password@host/name or mysql+pymysql://user:password@host/name"
)
_PATIENCE_S = 5
_ANY_EXPERIMENT = "Default"

_OF_STORES = ("boto3", "botocore", "requests", "sqlalchemy")

BESIDE_TAG = "distsens.artifacts"
"""Of an experiment whose artifacts lie beside an SQLite store, and move with it."""

# A line per migration, links with pictograms, progress bars and usage statistics have no place in a training log.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

# What they say of a store that fails, with a traceback or each time it is asked again, its error tells the driver.
_REPEATING = ("mlflow.store.db.utils", "mlflow.system_metrics", "urllib3.connectionpool")


class StoreError(OSError):
    """The file of an SQLite store has gone, or what is to lie beside it cannot be written."""


def check_tracking(uri: str, *, experiment: str, artifact_root: str | None = None) -> None:
    """Refuse, within seconds, a store that could not take this experiment's run. Writes nothing.

    Parameters
    ----------
    uri : address of an MLflow server (http, https) or of a database (SQLite, PostgreSQL, MySQL). An SQLite file need
        not exist yet: opening it creates it and its folder.
    experiment : name of the MLflow experiment; it need not exist, but it must not have been deleted.
    artifact_root : see `TrackedRun.create`.

    Raises
    ------
    InputError : the address is not one, nothing answers there, it holds something else, the experiment was deleted, or
        a database was given without a place for artifacts.
    """
    url = parse(uri)
    artifact_location(uri, artifact_root)
    if is_server(url):
        stage = _stage_on_server(url, experiment)
    elif is_absent(url):
        _check_can_be_created(url)
        stage = None
    else:
        stage = _stage_in_database(url, experiment)
    if stage == "deleted":
        raise InputError("tracking.experiment", experiment, "it was deleted: restore it, or choose another name")


def absolute_uri(uri: str) -> str:
    """The address with a relative SQLite path made absolute, so that it means the same in every folder."""
    url = parse(uri)
    address = url.render_as_string(hide_password=False)
    # SQLAlchemy writes spaces of a password as such, by which the address would end for whoever finds it in a text.
    return address if url.password is None else re.sub(r"\s", lambda space: quote(space[0]), address)


def artifact_location(uri: str, root: str | None) -> str | None:
    """Where an experiment's artifacts go, as a URI; None leaves the choice to the server.

    Without a `root`, an SQLite store keeps them in the folder ``artifacts`` beside its file.
    """
    url = parse(uri)
    if root is not None:
        return root if "://" in root else Path(root).absolute().as_uri()
    if is_server(url):
        return None
    if url.get_backend_name() == "sqlite":
        return (Path(str(url.database)).parent / "artifacts").as_uri()
    raise InputError("tracking.artifact_root", root, "give a folder or a bucket when the store is a database")


def connect(uri: str) -> MlflowClient:
    """A client of the store; a fresh database gets MLflow's tables, which takes a few seconds.

    The first call imports MLflow, silenced: call it before any other import of MLflow.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in _REPEATING:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return _client(absolute_uri(uri))


@lru_cache
def _client(uri: str) -> MlflowClient:
    """One for each store, whose patience is spent once for all that is asked of it."""
    from mlflow import MlflowClient

    return cast("MlflowClient", PatientClient(MlflowClient(uri)))


def open_store(uri: str) -> MlflowClient:
    """A client of a store that is already there, or an error within seconds.

    Raises
    ------
    InputError : the address is not one, nothing answers there, there is no store yet, or it holds something else.
    """
    url = parse(uri)
    if is_server(url):
        _stage_on_server(url, _ANY_EXPERIMENT)
    elif is_absent(url):
        raise InputError("tracking.uri", _shown(url), "there is no store yet")
    else:
        _stage_in_database(url, _ANY_EXPERIMENT)
    return connect(uri)


def check_run(uri: str, run_id: str) -> None:
    """Refuse a run that cannot be reopened. Writes nothing.

    Raises
    ------
    InputError : the store is not there yet, holds no such run, or the run was deleted.
    """
    url = parse(uri)
    if is_absent(url):
        raise InputError("tracking.run_id", run_id, f"there is no store yet at {_shown(url)}")
    find_run(connect(uri), run_id)


def find_run(client: MlflowClient, run_id: str) -> Run:
    """The run of that id; `InputError` if the store holds none, or it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError("tracking.run_id", run_id, "the store holds no such run") from error
    if found.info.lifecycle_stage == "deleted":
        raise InputError("tracking.run_id", run_id, "it was deleted: restore it, or start a new run")
    return found


def open_experiment(client: MlflowClient, name: str, location: str | None, *, beside_store: bool = False) -> str:
    """The id of the experiment of that name, created with this artifact location unless it exists."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            tags = {BESIDE_TAG: "beside the store"} if beside_store else {}
            return str(client.create_experiment(name, location, tags=tags))
        except MlflowException as error:
            # The trials of a sweep open their experiment at the same time: another one was first.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    return str(found.experiment_id)


def parse(uri: str) -> URL:
    """The parts of an address, an SQLite file's path made absolute; `InputError` where it is none."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if fault := fault_of_text(uri):
        raise InputError("tracking.uri", uri, fault)
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise InputError("tracking.uri", without_secrets(uri), _hint(uri)) from None
    if is_server(url) and url.host:
        return url
    if url.get_backend_name() not in _DATABASES:
        raise InputError("tracking.uri", _shown(url), _hint(uri))
    if url.get_backend_name() != "sqlite":
        return url
    if not url.database or url.database == ":memory:":
        raise InputError("tracking.uri", uri, "an SQLite store needs a file, " + _ALLOWED)
    if fault := fault_of_path(url.database):
        raise InputError("tracking.uri", uri, fault)
    return url.set(database=str(Path(url.database).absolute()))


def _hint(uri: str) -> str:
    """What to write instead; MLflow no longer keeps runs in plain folders, which many still have in their scripts."""
    path = uri.removeprefix("file:")
    if "://" in path.lstrip("/") or not path:
        return _ALLOWED
    folder = Path("/" + path.lstrip("/")) if path.startswith("/") else Path(path).absolute()
    return f"a plain folder cannot hold a store, write sqlite:///{folder / 'mlflow.db'}; {_ALLOWED}"


def is_server(url: URL) -> bool:
    """Whether an MLflow server is asked, and not a database."""
    return url.drivername in ("http", "https")


def is_absent(url: URL) -> bool:
    """Whether it is the address of an SQLite file that is not there yet."""
    return url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists()


def _shown(url: URL) -> str:
    """The address for messages."""
    return without_secrets(url.render_as_string(hide_password=True))


def _check_can_be_created(url: URL) -> None:
    file = Path(str(url.database))
    nearest = next(parent for parent in file.parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError("tracking.uri", _shown(url), f"{nearest} is not a folder that can be written")


def _stage_in_database(url: URL, experiment: str) -> str | None:
    """The experiment's lifecycle stage, None where there is none, read without creating or migrating tables."""
    import sqlalchemy

    if url.get_backend_name() == "sqlite" and not os.access(str(url.database), os.W_OK):
        raise InputError("tracking.uri", _shown(url), "the file cannot be written")
    with reading(url) as connection:
        tables = sqlalchemy.inspect(connection).get_table_names()
        query = sqlalchemy.text("SELECT lifecycle_stage FROM experiments WHERE name = :name")
        stage = connection.execute(query, {"name": experiment}).scalar() if "experiments" in tables else None
    if tables and "experiments" not in tables:
        raise InputError("tracking.uri", _shown(url), "this database holds other tables and none of MLflow's")
    return stage


@contextmanager
def reading(url: URL) -> Iterator[Connection]:
    """A connection to a database that is there; `InputError` if it, or what is asked of it, cannot be read."""
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    if url.get_backend_name() == "sqlite":
        file = Path(str(url.database))
        readable, options = url.set(database=file.as_uri(), query={"mode": "ro", "uri": "true"}), {}
    else:
        readable, options = url, {"connect_timeout": _PATIENCE_S}
    try:
        engine = sqlalchemy.create_engine(readable, connect_args=options)
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        raise InputError("tracking.uri", _shown(url), f"the database cannot be read: {reason(error)}") from error


def _stage_on_server(url: URL, experiment: str) -> str | None:
    with environment({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_PATIENCE_S)}):
        client = connect(url.render_as_string(hide_password=False))
        from mlflow.exceptions import MlflowException

        try:
            found = client.get_experiment_by_name(experiment)
        except MlflowException as error:
            allowed = f"it does not answer as an MLflow server: {reason(error)}"
            raise InputError("tracking.uri", _shown(url), allowed) from error
    return None if found is None else str(found.lifecycle_stage)


def check_still_there(uri: str) -> None:
    """Raise `StoreError` where the file of an SQLite store has gone: the driver may still have it open."""
    url = parse(uri)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise StoreError(f"the MLflow store {url.database} is gone")


def is_store_error(error: BaseException) -> bool:
    """Whether the store itself, or what keeps its artifacts, failed or refused: it is down, full, or not ours."""
    from mlflow.exceptions import MlflowException

    # MLflow passes on what the libraries say by which it reaches a bucket or a server's artifacts.
    return isinstance(error, MlflowException | StoreError) or type(error).__module__.partition(".")[0] in _OF_STORES


def reason(error: BaseException) -> str:
    """The innermost cause's first line: "Connection refused" rather than the layers around it."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return without_secrets(str(error).partition("\n")[0])[:200]
