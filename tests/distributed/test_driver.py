"""How a driver ends a training that goes wrong, or early: the worker and the record are real, Ray's workers are not.

The worker's function runs in this process with one seat, a list is its mailbox, and the driver's own recorder reads it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console
from torch import Tensor, nn

from distsens.distributed import driver
from distsens.distributed.monitor import Event
from distsens.distributed.preflight import check
from distsens.distributed.runs import StoredRun
from distsens.distributed.signals import signals_interrupt
from distsens.distributed.worker import Job, Seat, run_worker
from distsens.experiment import Experiment, load_recipe, merge
from distsens.report import Summary, open_view
from distsens.storage import open_place
from distsens.tracking import TrackedRun

pytestmark = pytest.mark.ray

RECIPES = Path(__file__).resolve().parents[2] / "jobs" / "recipes"
QUICK: dict[str, Any] = {
    "data": {"limit": 512, "augment": ["crop"]},
    "threat": {"eps": 0.05},
    "training": {"epochs": 6, "batch_size": 32, "ema_decay": 0.9},
    "attack": {"steps": 3},
    "validation": {"steps": 3},
    "test": {"steps": 2, "restarts": 1},
    "stabilize": {"weight": 0.2, "warmup_start": 0.0, "refresh_steps": 5},
}


class Mailbox(list[Event]):
    """What a worker tells, in order."""

    post = list.append

    def progress(self, _: object) -> None:
        """The latest is enough, and nobody looks."""

    testing = progress


class Ended(SimpleNamespace):
    """A training that has ended: its summary, the job's exit code, what was shown, and its MLflow run."""

    summary: Summary
    code: int
    shown: str
    run: Any


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: None) -> Callable[..., Ended]:
    """Train by the driver; before its worker begins, the run's folder can be spoilt."""

    def start(
        changes: dict[str, Any], spoil: Callable[[str], None] = lambda _: None, store: str | None = None
    ) -> Ended:
        def follow(job: Any, experiment: Experiment, shown: Any, take: Callable[[Event], None]) -> None:
            spoil(job.of.run_url)
            mailbox = Mailbox()
            run_worker(job.of, Seat(0, 1, torch.device("cpu"), on_epoch=lambda _: None), mailbox)
            for event in mailbox:
                take(event)

        def start_training(job: Job, notes: str) -> Any:
            return SimpleNamespace(of=job, close=lambda: None)

        monkeypatch.setattr(driver, "start_training", start_training)
        monkeypatch.setattr(driver, "follow", follow)
        if store is None:
            monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        else:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        places = {"workers": {"num": 1}, "storage": {"path": str(tmp_path / "runs")}}
        experiment = Experiment.parse(merge(merge(load_recipe("quickstart", [RECIPES]), QUICK), merge(places, changes)))
        shown = StringIO()
        view = open_view(Console(file=shown, width=200), experiment.training.epochs)
        with signals_interrupt() as caught:
            summary, code = driver.train_on_cluster(experiment, check(experiment), view, str(tmp_path), caught)
        run = MlflowClient(store or summary.mlflow_uri).get_run(summary.mlflow_run_id)
        return Ended(summary=summary, code=code, shown=shown.getvalue(), run=run)

    return start


def assert_failed(ended: Ended, *words: str) -> None:
    assert (ended.code, ended.summary.status, ended.run.info.status) == (1, "failed", "FAILED")
    message = ended.summary.message
    assert message is not None
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert ended.run.data.tags["distsens.outcome"] == message
    assert "Traceback" not in ended.shown


def test_a_nan_loss_stops_the_run_with_epoch_step_and_last_good_checkpoint(train: Callable[..., Ended]) -> None:
    blown_up = {"optimizer": "sgd", "lr": 1000, "weight_decay": 100, "schedule": "piecewise", "warmup": 0.5}
    ended = train({"training": blown_up})
    assert_failed(ended, "NaN", "epoch 1, step ", "last good checkpoint: none")


class Sleeper(nn.Sequential):
    """In eval mode it gives no numbers for bright images, from some training step on or once its weights are loaded."""

    def __init__(self, awake: int, bright: float) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 10))
        self.awake, self.bright = awake, bright

    def _load_from_state_dict(self, *state: Any) -> None:
        super()._load_from_state_dict(*state)
        self.awake = 0

    def forward(self, x: Tensor) -> Tensor:
        self.awake -= self.training
        logits: Tensor = super().forward(x)
        asleep = (x.flatten(1).mean(1, keepdim=True) > self.bright) & (not self.training and self.awake <= 0)
        return torch.where(asleep, torch.nan, logits)


def at_validation(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    return Sleeper(40, -1.0)


def at_the_test(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    return Sleeper(10**6, -1.0)


def at_the_test_for_some(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    return Sleeper(10**6, 0.33)


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (
            at_validation,
            ("the network has logits that are NaN or infinite after epoch 3", ": epoch 2 in"),
        ),
        (at_the_test, ("the network has logits that are NaN or infinite on the test split", ": epoch 6 in")),
        (at_the_test_for_some, ("NaN or infinite for ", " of 360 images, more than 5% (test split)", ": epoch 6 in")),
    ],
)
def test_a_network_that_gives_no_numbers_in_eval_mode_is_not_published(
    train: Callable[..., Ended], factory: Callable[..., nn.Module], says: tuple[str, ...]
) -> None:
    network = {"name": f"{__name__}:{factory.__name__}"}
    ended = train({"model": network, "stabilize": {"weight": 0.0}, "training": {"ema_decay": None}})
    assert_failed(ended, *says, "last good checkpoint: ")
    assert (ended.summary.published, ended.summary.mlflow_model, ended.summary.test) == (None, None, None)


def test_a_collapse_stops_the_run_with_a_clear_line(train: Callable[..., Ended]) -> None:
    crushed = {"weight": 1e4, "measure": "relative", "selection": "all", "warmup_end": 0.0}
    ended = train({"stabilize": crushed, "training": {"epochs": 12}})
    assert_failed(ended, "the network collapsed by epoch", f"last good checkpoint: epoch {ended.summary.epochs} in ")
    assert ended.summary.epochs >= 1


def test_a_run_that_is_rolled_back_and_ends_early_says_so_and_is_finished(train: Callable[..., Ended]) -> None:
    # One step of attack, a learning rate that makes accuracy jump, and an alarm that takes any jump for overfitting.
    ended = train(
        {
            "model": {"name": "lenet5"},
            "stabilize": {"weight": 0.0},
            "attack": {"steps": 1},
            "training": {"lr": 0.02, "schedule": "constant", "eps_warmup": 0.0, "epochs": 40, "patience": 3},
            "alarm": {"action": "rollback", "gap": 0.001, "fall": 0.99},
        }
    )
    summary, run = ended.summary, ended.run
    assert (ended.code, summary.status, summary.message, run.info.status) == (0, "finished", None, "FINISHED")
    assert summary.alarm is not None
    assert summary.alarm.startswith("catastrophic overfitting at epoch ")
    assert "and on with the validation attack" in summary.alarm
    assert f"alarm: {summary.alarm}" in ended.shown
    assert summary.epochs < 40
    assert summary.ended_early is not None
    assert summary.ended_early.startswith(f"epoch {summary.epochs}: robust accuracy has not risen above the ")
    assert f"ended early at {summary.ended_early}" in ended.shown
    assert summary.test is not None
    assert summary.test["images"] == 360
    assert run.data.tags["distsens.alarm"] == summary.alarm
    assert run.data.tags["distsens.ended_early"] == summary.ended_early
    assert {"validation/training_attack_accuracy", "validation/overfitting_gap", "alarm/rolled_back_to"} <= set(
        run.data.metrics
    )


def test_workers_that_do_not_see_the_drivers_storage_say_so(train: Callable[..., Ended]) -> None:
    ended = train({}, spoil=lambda url: open_place(url).delete("run.json"))
    assert_failed(ended, "give a storage.path that all machines share")


def test_a_signal_is_answered_while_the_model_is_given_to_mlflow(
    train: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    def log_result(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(driver, "log_result", log_result)
    began = time.monotonic()
    ended = train({"training": {"epochs": 1}})
    assert time.monotonic() - began < 50
    assert (ended.code, ended.summary.status, ended.run.info.status) == (143, "interrupted", "KILLED")
    assert ended.summary.test is not None, "what it has found"
    assert ended.run.data.tags["distsens.outcome"] == "interrupted by SIGTERM"


@pytest.mark.parametrize("what", ["log_text", "log_dataset"])
def test_a_run_that_cannot_be_described_fails_in_one_line_and_can_be_resumed(
    train: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(TrackedRun, what, fail)
    ended = train({})
    assert_failed(ended, "no space left on device")
    assert open_place(ended.summary.storage).keys("run.json")


def test_a_run_that_cannot_be_kept_is_none(
    train: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(StoredRun, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        train({})
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert (run.info.status, run.data.tags["distsens.outcome"]) == ("FAILED", "no space left on device")


def test_a_secret_in_the_address_of_the_store_is_shown_and_written_nowhere(
    train: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "7712345"  # a setting of SQLite's that does nothing here stands for a password
    store = f"sqlite:///{tmp_path}/mlflow.db?cached_statements={secret}"

    def fail(*_: object) -> None:
        raise OSError(f"{store} is in the way")

    monkeypatch.setattr(driver, "log_figure", fail)
    ended = train({"training": {"epochs": 1}}, store=store)
    assert_failed(ended, f"sqlite:///{tmp_path}/mlflow.db?cached_statements=*** is in the way")
    (tmp_path / "summary.json").write_text(json.dumps(ended.summary.to_dict()))
    assert secret not in ended.shown
    assert secret not in "".join(capfd.readouterr())
    assert ended.run.data.params["tracking.uri"] == "None"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"run.json", "mlflow.db", "summary.json"} <= {path.name for path in files}
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
