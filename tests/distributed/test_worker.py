"""What a training worker finds in storage."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from distsens.distributed.worker import _Worker
from distsens.storage import Checkpoints, open_place


@pytest.fixture
def worker(tmp_path: Path) -> _Worker:
    """A worker that has its storage, and nothing else yet."""
    worker = object.__new__(_Worker)
    place = open_place(str(tmp_path / "run-1"))
    worker.checkpoints, worker.job = Checkpoints(place), SimpleNamespace(run_url=place.url)
    return worker


def test_the_newest_checkpoint_is_read(worker: _Worker) -> None:
    worker.checkpoints.place.put("run.json", b"{}")
    assert worker._stored() == (None, None, ())
    worker.checkpoints.save(1, {"state.pt": b"x"}, experiment="", metrics={})
    assert worker._stored() == (None, {"state.pt": b"x"}, ())


def test_a_storage_without_the_run_is_another_machines(worker: _Worker) -> None:
    fault, files, _ = worker._stored()
    assert "give a storage.path that all machines share" in str(fault)
    assert files is None


def test_a_storage_that_cannot_be_read_is_said_in_one_line(worker: _Worker, tmp_path: Path) -> None:
    (tmp_path / "run-1").symlink_to("run-1")
    fault, files, _ = worker._stored()
    assert isinstance(fault, OSError), "it may pass, so the worker is started anew"
    assert str(fault).startswith("the storage cannot be read from the first worker's machine: ")
    assert "Too many levels" in str(fault)
    assert "\n" not in str(fault)
    assert files is None
