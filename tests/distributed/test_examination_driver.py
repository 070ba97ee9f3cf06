"""What the evaluation's driver does when something goes wrong, without a Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from distsens.distributed.examination_driver import StoredEvaluation, ended_whatever_happens, evaluation_name
from distsens.errors import InputError
from distsens.examination import Examination
from distsens.storage import open_place
from distsens.tracking import TrackedRun


def stored(folder: Path, **changes: Any) -> StoredEvaluation:
    known = {
        "mlflow_run_id": "abc",
        "model_sha256": "a" * 64,
        "source_sha256": None,
        "data_digest": "d" * 64,
        **changes,
    }
    return StoredEvaluation("evaluate-net", open_place(str(folder)), Examination(), **known)


def test_a_run_does_not_stay_running_whatever_raises(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracked = TrackedRun.create(uri, experiment="e", name="evaluate", params={}, tags={}, artifact_root=None)
    with pytest.raises(ZeroDivisionError), ended_whatever_happens(tracked):
        raise ZeroDivisionError("nobody thought of this")
    run = MlflowClient(uri).get_run(tracked.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["distsens.outcome"] == "nobody thought of this"


@pytest.mark.parametrize("model", ["my net", "Ünïversal/net:3", "n" * 300, "", "resnet-18.v2"])
def test_every_model_has_a_name_that_storage_takes(tmp_path: Path, model: str) -> None:
    place = open_place(str(tmp_path)).child(evaluation_name(model))
    place.child("ledger")
    assert evaluation_name("my net").startswith("evaluate-my-net-")


def test_a_damaged_ledger_is_named_before_anything_goes_on(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "shard-00000.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"resume: got 'evaluate-net'; its ledger/shard-00000.parquet is damaged"):
        stored(tmp_path).shards()
