"""A store that was moved or copied: its earlier artifacts are found, and further ones stay with them."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from distsens.errors import InputError
from distsens.tracking import WEIGHTS_ARTIFACT, TrackedRun, absolute_uri, beside, fetch_model_files, holds_run
from distsens.tracking.moved import follow_artifacts, moved_artifacts
from tests.tracking.conftest import Store


class Copied:
    """A copy of the tests' store, in which a run has logged its weights."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder, self.run_id = folder, run_id

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def weights(self) -> Path:
        return self.folder / "artifacts" / self.run_id / "artifacts" / WEIGHTS_ARTIFACT

    def rename(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder = self.folder.rename(folder)

    def mentions(self, text: str) -> list[str]:
        """Every column of the database with this text in it."""
        with sqlite3.connect(self.folder / "mlflow.db") as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            columns = [(t, row[1]) for t in tables for row in connection.execute(f"PRAGMA table_info({t})")]
            return [
                f"{table}.{column}"
                for table, column in columns
                if connection.execute(
                    f'SELECT COUNT(*) FROM {table} WHERE "{column}" LIKE ?', [f"%{text}%"]
                ).fetchone()[0]
            ]


@pytest.fixture
def copied(store: Store, tmp_path: Path) -> Copied:
    folder = tmp_path / "first place é"
    shutil.copytree(store.folder / "not" / "there" / "yet", folder)
    (run,) = MlflowClient(store.uri).search_runs(["1"])
    found = Copied(folder, run.info.run_id)
    found.weights.write_bytes(b"of the copy")
    return found


@pytest.fixture
def moved(copied: Copied, tmp_path: Path) -> Iterator[Copied]:
    """The copy, once it has been worked with where it was, and been moved since."""
    follow_artifacts(copied.uri, None)
    copied.rename(tmp_path / "100%" / "second")
    yield copied
    assert not (tmp_path / "first place é").exists()


def test_a_store_where_it_was_made_has_not_moved(store: Store) -> None:
    assert moved_artifacts(store.uri) == {}


def test_of_a_copy_the_copied_artifacts_count_before_anything_is_written(copied: Copied, store: Store) -> None:
    before = (copied.folder / "mlflow.db").read_bytes()
    found = fetch_model_files(f"runs:/{copied.run_id}", (), copied.uri)
    assert found.files[WEIGHTS_ARTIFACT] == b"of the copy"
    assert (copied.folder / "mlflow.db").read_bytes() == before
    assert fetch_model_files(f"runs:/{copied.run_id}", (), store.uri).files[WEIGHTS_ARTIFACT] == b"weights"


def test_a_run_that_was_moved_is_continued_beside_its_earlier_artifacts(moved: Copied) -> None:
    run = TrackedRun.reopen(moved.uri, moved.run_id)
    run.log_text("later.txt", "later")
    run.finish("FINISHED")
    assert {path.name for path in moved.weights.parents[1].iterdir()} >= {"later.txt", "weights", "figures"}
    client = MlflowClient(moved.uri)
    assert "weights" in [one.path for one in client.list_artifacts(moved.run_id)]


def test_a_new_run_in_a_moved_store_keeps_its_artifacts_there(moved: Copied) -> None:
    run = TrackedRun.create(moved.uri, experiment="first", name="new", params={}, tags={}, artifact_root=None)
    run.log_text("new.txt", "new")
    run.finish("FINISHED")
    assert (moved.folder / "artifacts" / run.run_id / "artifacts" / "new.txt").read_text() == "new"


def test_nothing_in_the_database_names_the_old_place_any_more(moved: Copied) -> None:
    named = {"runs.artifact_uri", "logged_models.artifact_location", "experiments.artifact_location"}
    registered = {"model_versions.source", "model_versions.storage_location"}  # where other tests have registered any
    assert named <= set(moved.mentions("first%20place")) <= named | registered
    follow_artifacts(moved.uri, None)
    assert moved.mentions("first%20place") == []
    assert moved_artifacts(moved.uri) == {}
    (model,) = MlflowClient(moved.uri).search_logged_models(["1"])
    assert model.artifact_location.startswith(f"{moved.folder.as_uri()}/artifacts/models/m-")


def test_a_store_moves_even_before_it_has_artifacts(copied: Copied, tmp_path: Path) -> None:
    follow_artifacts(copied.uri, None)
    shutil.rmtree(copied.folder / "artifacts")
    copied.rename(tmp_path / "second")
    assert moved_artifacts(copied.uri) == {
        f"{(tmp_path / 'first place é').as_uri()}/artifacts": f"{(tmp_path / 'second').as_uri()}/artifacts"
    }


def test_a_database_that_left_its_artifacts_behind_finds_them_there(copied: Copied, tmp_path: Path) -> None:
    follow_artifacts(copied.uri, None)
    (tmp_path / "alone").mkdir()
    shutil.copy(copied.folder / "mlflow.db", tmp_path / "alone")
    assert moved_artifacts(f"sqlite:///{tmp_path}/alone/mlflow.db") == {}


def test_a_place_of_the_users_own_and_one_behind_a_link_are_left_alone(copied: Copied, tmp_path: Path) -> None:
    follow_artifacts(copied.uri, None)
    MlflowClient(copied.uri).create_experiment("own", f"{(tmp_path / 'own').as_uri()}/artifacts")
    (tmp_path / "link").symlink_to(copied.folder)
    assert moved_artifacts(copied.uri) == moved_artifacts(f"sqlite:///{tmp_path}/link/mlflow.db") == {}


def test_artifacts_of_a_database_elsewhere_move_with_the_storage_and_are_not_stolen_by_a_copy(
    copied: Copied, tmp_path: Path
) -> None:
    follow_artifacts(copied.uri, None)
    database = tmp_path / "server.db"
    (copied.folder / "mlflow.db").rename(database)
    shutil.copytree(copied.folder, tmp_path / "copy")
    uri, before = f"sqlite:///{database}", f"{copied.folder.as_uri()}/artifacts"
    assert moved_artifacts(uri, str(copied.folder / "artifacts")) == {}
    copied.rename(tmp_path / "second")
    root = str(tmp_path / "second" / "artifacts")
    assert moved_artifacts(uri, root) == {before: Path(root).as_uri()}


def test_a_store_that_lay_in_a_folder_is_looked_for_where_that_is_now(copied: Copied, tmp_path: Path) -> None:
    now = beside(copied.uri, tmp_path, Path("/elsewhere"))
    assert now == absolute_uri("sqlite:////elsewhere/first place é/mlflow.db")
    assert beside("sqlite:////data/mlflow.db", tmp_path, Path("/elsewhere")) is None
    assert beside("http://mlflow:5000", tmp_path, Path("/elsewhere")) is None
    assert beside("postgresql://host/name", tmp_path, Path("/elsewhere")) is None


def test_a_store_that_knows_a_run_is_told_from_one_that_does_not(copied: Copied, tmp_path: Path) -> None:
    assert holds_run(copied.uri, copied.run_id)
    assert not holds_run(copied.uri, "another")
    assert not holds_run(f"sqlite:///{tmp_path}/absent.db", copied.run_id)
    (tmp_path / "text.db").write_text("no database")
    assert not holds_run(f"sqlite:///{tmp_path}/text.db", copied.run_id)
    assert not (tmp_path / "absent.db").exists()


def test_a_moved_store_that_cannot_be_written_is_refused(moved: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsens.tracking.moved._COLUMNS", (("no_such_table", "column"),))
    with pytest.raises(InputError, match=r"^tracking.uri: .*the database cannot be written: no such table"):
        follow_artifacts(moved.uri, None)
