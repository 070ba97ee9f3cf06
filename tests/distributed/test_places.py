"""What is resumed in another folder than it began in finds its things there."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distsens.distributed.evaluations import find_evaluation
from distsens.distributed.places import followed, pinned
from distsens.distributed.sweep_record import find_sweep
from distsens.errors import InputError
from distsens.storage import open_place


def store(folder: Path, *runs: str) -> str:
    """An SQLite file that knows these runs, and its address."""
    folder.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(folder / "mlflow.db") as connection:
        connection.execute("CREATE TABLE runs (run_uuid TEXT)")
        connection.executemany("INSERT INTO runs VALUES (?)", [(run,) for run in runs])
    return f"sqlite:///{folder}/mlflow.db"


def begun(folder: Path, uri: str, **fields: Any) -> dict[str, Any]:
    """Fields of what began in this folder of runs."""
    (folder / "mine").mkdir(parents=True, exist_ok=True)
    return {**pinned(None, open_place(str(folder)), uri), **fields}


def found(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    return followed(fields, open_place(str(folder / "mine")), "abc")


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Any]:
    return begun(tmp_path / "runs", store(tmp_path / "runs", "abc"))


def test_where_nothing_moved_nothing_changes(runs: dict[str, Any], tmp_path: Path) -> None:
    assert found(runs, tmp_path / "runs") == runs


@pytest.mark.parametrize("name", ["elsewhere", "far/away/runs", "mit Umläuten 100%"])
def test_the_store_that_moved_along_is_taken(runs: dict[str, Any], tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "runs").rename(tmp_path / name)
    now = open_place(str(tmp_path / name))
    assert found(runs, tmp_path / name) == pinned(None, now, f"sqlite:///{tmp_path}/{name}/mlflow.db")


def test_of_a_copy_it_is_the_copied_one(runs: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    assert found(runs, tmp_path / "copy")["tracking"]["uri"] == f"sqlite:///{tmp_path}/copy/mlflow.db"
    assert found(runs, tmp_path / "runs") == runs


def test_a_run_that_was_moved_alone_stays_with_its_store_also_where_there_is_another(
    runs: dict[str, Any], tmp_path: Path
) -> None:
    for folder in (tmp_path / "without", tmp_path / "with"):
        folder.mkdir()
        shutil.copytree(tmp_path / "runs" / "mine", folder / "mine")
    store(tmp_path / "with", "another")
    for folder in (tmp_path / "without", tmp_path / "with"):
        now = found(runs, folder)
        assert now["storage"]["path"] == folder.as_uri()
        assert now["tracking"] == runs["tracking"]


def test_a_parent_that_was_renamed_is_followed_by_all_that_lies_in_it(tmp_path: Path) -> None:
    old, new = tmp_path / "project", tmp_path / "renamed"
    fields = begun(
        old / "runs",
        store(old, "abc"),
        model={"weights": f"{old}/first.pt", "address": f"{old}/runs/judged#best"},
        data={"root": f"{old}/images", "extra": None},
        transfer=f"{old}/runs/judged",
        examples=(old / "pairs").as_uri(),
        baseline="relative.json",
    )
    (old / "first.pt").touch()
    (old / "runs" / "judged").mkdir()
    (old / "images").mkdir()
    old.rename(new)
    now = found(fields, new / "runs")
    assert now["tracking"]["uri"] == f"sqlite:///{new}/mlflow.db"
    assert now["model"] == {"weights": f"{new}/first.pt", "address": f"{new}/runs/judged#best"}
    assert now["data"] == {"root": f"{new}/images", "extra": None}
    assert (now["transfer"], now["examples"]) == (f"{new}/runs/judged", (new / "pairs").as_uri())
    assert now["baseline"] == "relative.json"


def test_data_and_weights_that_stayed_are_taken_from_where_they_are(tmp_path: Path) -> None:
    fields = begun(tmp_path / "a" / "runs", store(tmp_path / "a", "abc"), data={"root": f"{tmp_path}/a/data"})
    for folder in ("a", "b"):
        (tmp_path / folder / "data").mkdir(parents=True)
    (tmp_path / "a" / "runs").rename(tmp_path / "b" / "runs")
    now = found(fields, tmp_path / "b" / "runs")
    assert now["data"] == fields["data"]
    assert now["tracking"] == fields["tracking"]


def test_a_server_and_what_began_in_a_bucket_or_nowhere_keep_their_address(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for fields in (
        {"storage": {"path": "/gone"}, "tracking": {"uri": "http://mlflow:5000"}},
        {"storage": {"path": "s3://bucket/a"}, "tracking": {"uri": "sqlite:////gone/mlflow.db"}},
        {"storage": {"path": None}, "tracking": {"uri": None}},
        {},
    ):
        assert found(fields, tmp_path) == {**fields, "storage": {"path": tmp_path.as_uri()}}


@pytest.mark.parametrize(("find", "file"), [(find_sweep, "sweep.json"), (find_evaluation, "evaluation.json")])
def test_what_is_not_there_is_told_from_what_cannot_be_read(
    tmp_path: Path, find: Callable[[str, str], object], file: str
) -> None:
    storage = str(tmp_path)
    with pytest.raises(InputError, match=rf"^resume: got 'mine'; there is no {file} of an? .* in "):
        find("mine", storage)
    (tmp_path / "mine").mkdir(exist_ok=True)
    (tmp_path / "mine" / file).symlink_to(file)
    with pytest.raises(InputError, match=rf"^resume: got 'mine'; its {file} cannot be read: .*Too many levels"):
        find("mine", storage)
