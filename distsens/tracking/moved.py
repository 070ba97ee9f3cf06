"""A store that was moved, renamed or copied with its artifacts, whose absolute places MLflow has written down."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote

from distsens.errors import InputError
from distsens.redaction import without_secrets
from distsens.tracking.store import BESIDE_TAG, artifact_location, is_absent, is_server, parse, reading, reason

_FILE = "file://"
# Where MLflow writes down places of artifacts.
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_PATIENCE_S = 30


def holds_run(uri: str, run_id: str) -> bool:
    """Whether there is a database at an address that knows the run; it is neither created nor changed."""
    url = parse(uri)
    if is_server(url) or is_absent(url):
        return False
    import sqlalchemy

    try:
        with reading(url) as connection:
            query = sqlalchemy.text("SELECT 1 FROM runs WHERE run_uuid = :run_id")
            return connection.execute(query, {"run_id": run_id}).scalar() is not None
    except InputError:
        return False


def beside(uri: str, before: Path, now: Path) -> str | None:
    """The address of an SQLite store that lay in one folder, as it is in another; None if it lay elsewhere."""
    url = parse(uri)
    if is_server(url) or url.get_backend_name() != "sqlite":
        return None
    file = Path(str(url.database))
    if not file.is_relative_to(before):
        return None
    return url.set(database=str(now / file.relative_to(before))).render_as_string(hide_password=False)


def follow_artifacts(uri: str, artifact_root: str | None) -> None:
    """Let a database that was moved with its artifacts know where they are, so that earlier ones are found.

    Further ones would otherwise go to the old place, made anew.

    Parameters
    ----------
    uri, artifact_root : as of `TrackedRun.create`; a server is left alone.

    Raises
    ------
    InputError : the database cannot be written.
    """
    moved = moved_artifacts(uri, artifact_root)
    if not moved:
        return
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    url = parse(uri)
    patience = {"timeout": _PATIENCE_S} if url.get_backend_name() == "sqlite" else {}
    engine = sqlalchemy.create_engine(url, connect_args=patience)
    try:
        with engine.begin() as connection:
            for table, name in _COLUMNS:
                column = sqlalchemy.column(name, sqlalchemy.String)
                changed = sqlalchemy.table(table, column)
                for before, now in moved.items():
                    rest = sqlalchemy.func.substr(column, len(before) + 1)
                    below = (column == before) | (sqlalchemy.func.substr(column, 1, len(before) + 1) == f"{before}/")
                    connection.execute(
                        changed.update().where(below).values({name: sqlalchemy.literal(now).concat(rest)})
                    )
    except SQLAlchemyError as error:
        shown = without_secrets(url.render_as_string(hide_password=True))
        raise InputError("tracking.uri", shown, f"the database cannot be written: {reason(error)}") from error
    finally:
        engine.dispose()


def moved_artifacts(uri: str, artifact_root: str | None = None) -> dict[str, str]:
    """Where artifacts are that a database looks for in another place: by the former location, as URIs. Writes nothing.

    The artifacts of an experiment have moved if some of its runs have theirs here. Those of a store that was copied
    have too, while a database that left its artifacts behind still finds them there. An experiment that keeps them
    beside the store moves with it, even before there are any.
    """
    url = parse(uri)
    local = not is_server(url) and url.get_backend_name() == "sqlite"
    if is_server(url) or is_absent(url) or (artifact_root is None and not local):
        return {}
    here = artifact_location(uri, artifact_root) or ""
    if not here.startswith(_FILE):
        return {}
    import sqlalchemy

    elsewhere = "artifact_location LIKE 'file://%' AND artifact_location <> :here"
    with reading(url) as connection:
        if "experiments" not in sqlalchemy.inspect(connection).get_table_names():
            return {}
        locations = {
            location: bool(beside_store)
            for location, beside_store in connection.execute(
                sqlalchemy.text(
                    "SELECT artifact_location, MAX(CASE WHEN experiment_tags.key IS NULL THEN 0 ELSE 1 END) "
                    "FROM experiments LEFT JOIN experiment_tags "
                    "ON experiments.experiment_id = experiment_tags.experiment_id AND experiment_tags.key = :tag "
                    f"WHERE {elsewhere} GROUP BY artifact_location"
                ),
                {"tag": BESIDE_TAG, "here": here},
            )
        }
        runs: dict[str, set[str]] = defaultdict(set)
        for location, run_id in connection.execute(
            sqlalchemy.text(
                "SELECT artifact_location, run_uuid FROM runs JOIN experiments "
                f"ON runs.experiment_id = experiments.experiment_id WHERE {elsewhere}"
            ),
            {"here": here},
        ):
            runs[location].add(run_id)
    return {
        location: here
        for location, beside_store in locations.items()
        if not _is_same(location, here)
        and _have_moved(
            runs[location], location, here, copied=local, beside_store=beside_store and artifact_root is None
        )
    }


def _have_moved(runs: set[str], there: str, here: str, *, copied: bool, beside_store: bool) -> bool:
    are_here, are_there = (bool(runs & _folders(place)) for place in (here, there))
    if are_here:
        # A database on a server is not copied with them: what is in both places, it knows from the first.
        return copied or not are_there
    return beside_store and not are_there


def local_folder(uri: str) -> Path:
    """The folder of a file URI."""
    return Path(unquote(uri.removeprefix(_FILE), errors="surrogateescape"))


def _folders(location: str) -> set[str]:
    try:
        return {path.name for path in local_folder(location).iterdir()}
    except OSError:
        return set()


def _is_same(location: str, other: str) -> bool:
    """Whether two addresses lead to one folder, by a link."""
    try:
        return local_folder(location).samefile(local_folder(other))
    except OSError:
        return False
