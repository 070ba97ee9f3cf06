"""Runs in storage: found by name or path, resumed as they began."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import pytest
import torch

from distsens.distributed.runs import StoredRun, check_checkpoints, find_run, new_name, pin_places, with_changes
from distsens.errors import InputError
from distsens.experiment import Experiment
from distsens.storage import Checkpoints, open_place

UseS3 = Callable[[Mapping[str, str]], str]


@pytest.fixture
def run(tmp_path: Path) -> StoredRun:
    experiment = Experiment.parse({"name": "mine", "threat": {"eps": 0.1}, "data": {"augment": ["crop"]}})
    storage = open_place(str(tmp_path))
    pinned = pin_places(experiment, storage, f"sqlite:///{tmp_path}/mlflow.db")
    run = StoredRun("mine-1", storage.child("mine-1"), pinned, "abc")
    run.save()
    return run


def state(*robust_accuracies: float) -> dict[str, bytes]:
    """Files of a checkpoint whose history holds these, from epoch 0 on."""
    history = [
        {
            "epoch": epoch,
            "metrics": {"validation/robust_accuracy": value, "validation/clean_accuracy": 1.0},
            "alarm": None,
        }
        for epoch, value in enumerate(robust_accuracies)
    ]
    buffer = BytesIO()
    torch.save({"history": json.dumps(history)}, buffer)
    return {"state.pt": buffer.getvalue()}


def test_a_stored_run_is_found_by_name_and_by_path(run: StoredRun, tmp_path: Path) -> None:
    for name in ("mine-1", str(tmp_path / "mine-1")):
        found = find_run(name, str(tmp_path))
        assert found == run


def test_a_run_found_by_path_goes_back_to_its_own_storage_and_store(
    run: StoredRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resumed = with_changes(find_run(str(tmp_path / "mine-1"), "runs"), {})
    assert resumed.storage.path == tmp_path.as_uri()
    assert resumed.tracking.uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_run_that_was_moved_goes_on_where_it_is(run: StoredRun, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    (tmp_path / "mine-1").rename(tmp_path / "moved" / "mine-1")
    found = find_run(str(tmp_path / "moved" / "mine-1"), str(tmp_path))
    assert found.experiment.storage.path == (tmp_path / "moved").as_uri()


@pytest.mark.parametrize("address", ["postgresql://me:secret@host/name", "https://token@host"])
def test_an_address_that_may_hold_a_secret_is_not_written_down(address: str) -> None:
    pinned = pin_places(Experiment(), open_place("s3://bucket/team"), address)
    assert pinned.tracking.uri is None
    assert pinned.storage.path == "s3://bucket/team"


def test_a_server_is_written_down_as_it_was_given() -> None:
    for address in ("http://mlflow:5000", "https://mlflow.example.org/team"):
        assert pin_places(Experiment(), open_place("s3://bucket/team"), address).tracking.uri == address


def test_an_unknown_run_names_those_there_are(run: StoredRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the last runs there: mine-1"):
        find_run("other", str(tmp_path))
    with pytest.raises(InputError, match="the last runs there: none yet"):
        find_run("other", str(tmp_path / "empty"))


def test_a_run_in_a_bucket_is_found_by_name_and_by_address(moto: dict[str, str], use_s3: UseS3) -> None:
    storage = f"{use_s3(moto)}/team"
    experiment = pin_places(Experiment(), open_place(storage), "http://mlflow:5000")
    run = StoredRun("mine-1", open_place(storage).child("mine-1"), experiment, "abc")
    run.save()
    assert find_run("mine-1", storage) == run
    for address in (f"{storage}/mine-1", f"{storage}/mine-1/"):
        assert find_run(address, "runs") == run
    with pytest.raises(InputError, match="the last runs there: mine-1"):
        find_run("other", storage)
    with pytest.raises(InputError, match=r"there is no run\.json of a run"):
        find_run(f"{storage}/other", "runs")


def test_a_storage_that_cannot_be_reached_is_not_taken_for_one_without_the_run(
    moto: dict[str, str], use_s3: UseS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = use_s3(moto)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(InputError, match=r"^storage.path: .*Could not connect"):
        find_run("mine-1", storage)


def test_names_of_new_runs_begin_with_the_experiments_and_differ() -> None:
    names = {new_name(Experiment(name="mine")) for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("mine-") for name in names)


def test_workers_and_places_may_change_on_resume(run: StoredRun) -> None:
    changed = with_changes(run, {"workers": {"num": 1}, "checkpoint": {"keep": 5}, "storage": {"path": "/elsewhere"}})
    assert changed.workers.num == 1
    assert changed.data.augment == ("crop",)
    assert changed.digest() == run.experiment.digest()


def test_what_decides_the_result_may_not_change_on_resume(run: StoredRun) -> None:
    with pytest.raises(InputError, match=r"it is another experiment \(training.epochs differ\)"):
        with_changes(run, {"training": {"epochs": 3}})


def test_a_run_without_checkpoints_may_begin_anew(run: StoredRun) -> None:
    check_checkpoints(run)


def test_a_damaged_newest_checkpoint_is_passed_over_for_an_older_one(run: StoredRun) -> None:
    checkpoints = Checkpoints(run.place)
    for epoch in (1, 2):
        checkpoints.save(epoch, state(0.1, 0.2), experiment=run.experiment.digest(), metrics={})
    run.place.delete("checkpoints/epoch-0002/state.pt")
    check_checkpoints(run)
    run.place.delete("checkpoints/epoch-0001/state.pt")
    with pytest.raises(InputError, match=r"none of its checkpoints can be used: .*epoch-0002: state.pt: is missing"):
        check_checkpoints(run)


def test_a_run_whose_best_epoch_is_damaged_is_refused_before_it_trains_on(run: StoredRun) -> None:
    checkpoints = Checkpoints(run.place)
    for epoch in (1, 2):
        checkpoints.save(epoch, state(0.1, 0.3, 0.2), experiment=run.experiment.digest(), metrics={})
    check_checkpoints(run)
    run.place.put("checkpoints/epoch-0001/state.pt", b"cut short")
    with pytest.raises(InputError, match=r"its best epoch, 1, cannot be used: .*epoch-0001: state.pt"):
        check_checkpoints(run)
