from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlflow
import pytest

from distsens.errors import InputError
from distsens.tracking import WEIGHTS_ARTIFACT, TrackedRun, fetch_model_files

if TYPE_CHECKING:
    from tests.tracking.conftest import Store


def refusal(store: Store, address: str) -> InputError:
    with pytest.raises(InputError) as raised:
        fetch_model_files(address, (), store.uri)
    assert "\n" not in str(raised.value)
    assert (raised.value.field, raised.value.value) == ("model", address)
    return raised.value


def test_the_weights_and_the_artifacts_that_are_there_are_fetched(store: Store, run: TrackedRun) -> None:
    run.set_tag("distsens.run", "mine-1")
    run.log_bytes(WEIGHTS_ARTIFACT, b"weights")
    run.log_text("experiment.yaml", "name: mine\n")
    run.log_text("notes/a.txt", "text")
    before = mlflow.get_tracking_uri()
    found = fetch_model_files(
        f"runs:/{run.run_id}", ("experiment.yaml", "notes/a.txt", "absent.json", "no/b"), store.uri
    )
    assert found.files == {WEIGHTS_ARTIFACT: b"weights", "experiment.yaml": b"name: mine\n", "notes/a.txt": b"text"}
    assert (found.run_id, found.name, found.tags["distsens.run"]) == (run.run_id, "a run", "mine-1")
    assert mlflow.get_tracking_uri() == before


def test_a_run_that_was_deleted_or_logged_no_weights_is_refused(
    store: Store, new_run: Callable[[], TrackedRun]
) -> None:
    empty, deleted = new_run(), new_run()
    assert (
        f"its run {empty.run_id} has no {WEIGHTS_ARTIFACT} in file://"
        in refusal(store, f"runs:/{empty.run_id}").allowed
    )
    deleted.log_bytes(WEIGHTS_ARTIFACT, b"weights")
    store.client.delete_run(deleted.run_id)
    assert "it was deleted" in refusal(store, f"runs:/{deleted.run_id}").allowed
    store.client.restore_run(deleted.run_id)


def test_artifacts_that_cannot_be_read_are_told(store: Store, run: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run.log_bytes(WEIGHTS_ARTIFACT, b"weights")

    def denied(*_: object) -> None:
        raise PermissionError("denied")

    monkeypatch.setattr("mlflow.MlflowClient.download_artifacts", denied)
    reason = f"its artifact {WEIGHTS_ARTIFACT} cannot be read (denied)"
    assert refusal(store, f"runs:/{run.run_id}").allowed == reason


@pytest.mark.parametrize("address", ["runs:/", "runs:/a/b", "models:/a", "models:/a/latest", "models:/a@b/c", "a"])
def test_an_address_of_no_known_form_is_refused_with_those_there_are(store: Store, address: str) -> None:
    assert "models:/<name>@<alias>" in refusal(store, address).allowed
