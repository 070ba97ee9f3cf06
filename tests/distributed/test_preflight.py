"""Where a run's things are kept, and what is refused before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distsens.distributed.preflight import TRACKING_VARIABLE, Checked, check, storage_url, tracking_places
from distsens.errors import InputError
from distsens.experiment import Experiment
from distsens.storage import open_place

SUBMITTED = json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder and home, and none of the variables that choose places."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (TRACKING_VARIABLE, "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)


def places(path: str | None, uri: str | None = None) -> tuple[str, str | None]:
    experiment = Experiment.parse({"storage": {"path": path}, "tracking": {"uri": uri}})
    return tracking_places(experiment, open_place(storage_url(experiment)))


def test_runs_are_tracked_beside_them(tmp_path: Path) -> None:
    assert places(None) == (f"sqlite:///{tmp_path}/runs/mlflow.db", None)
    assert places("my runs") == (f"sqlite:///{tmp_path}/my runs/mlflow.db", None)


def test_runs_of_a_submitted_job_outlive_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", SUBMITTED)
    assert places(None) == (f"sqlite:///{tmp_path}/home/distsens/runs/mlflow.db", None)


def test_runs_in_a_bucket_are_tracked_in_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert places("s3://bucket/team") == (f"sqlite:///{tmp_path}/runs/mlflow.db", None)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", SUBMITTED)
    assert places("s3://bucket/team") == (f"sqlite:///{tmp_path}/home/distsens/runs/mlflow.db", None)


def test_a_server_keeps_its_artifacts_where_it_likes_and_a_database_in_the_storage() -> None:
    assert places("s3://bucket/team", "http://mlflow:5000") == ("http://mlflow:5000", None)
    assert places("s3://bucket/team", "postgresql://host/name") == (
        "postgresql://host/name",
        "s3://bucket/team/artifacts",
    )


_NETWORKS = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self, shape, classes, spare, differentiable=True):
        super().__init__()
        self.body = nn.Linear(shape[1] * shape[2], 8)
        self.head = nn.Linear(8, classes)
        self.spare = nn.Linear(3, 3).requires_grad_(spare)
        self.differentiable = differentiable

    def forward(self, images):
        logits = self.head(self.body(images.flatten(1)))
        return logits if self.differentiable else logits.detach()

def spare(*, shape, classes):
    return Network(shape, classes, True)

def frozen(*, shape, classes):
    return Network(shape, classes, False)

def deaf(*, shape, classes):
    return Network(shape, classes, False, False)

class Norm(nn.BatchNorm1d):
    def forward(self, rows):
        return rows * self.weight + self.bias

def narrow(*, shape, classes):
    return nn.Sequential(nn.Conv2d(1, 8, shape[1:]), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, classes))

def normed(*, shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], 8), Norm(8), nn.Linear(8, classes))
"""


def checked(name: str, workers: int, **training: Any) -> Checked:
    model, number = {"name": f"networks:{name}"}, {"num": workers}
    return check(Experiment.parse({"model": model, "workers": number, "training": training}))


def test_parameters_without_a_gradient_are_refused_where_ddp_would_wait_for_them(tmp_path: Path) -> None:
    (tmp_path / "networks.py").write_text(_NETWORKS)
    checked("spare", 1)
    checked("frozen", 2)
    with pytest.raises(InputError, match=r"model.name: .*network.spare.weight has none: freeze it"):
        checked("spare", 2)
    with pytest.raises(InputError, match=r"model.name: .*it cannot be trained: it gives logits without a gradient"):
        checked("deaf", 1)


def test_a_batch_norm_that_may_keep_its_statistics_to_itself_is_named_where_it_matters(tmp_path: Path) -> None:
    (tmp_path / "networks.py").write_text(_NETWORKS)
    (notice,) = checked("normed", 2).notices
    assert notice.startswith("1 batch-norm layers have a forward of their own (network.2)")
    assert checked("normed", 1).notices == checked("normed", 2, sync_batch_norm=False).notices == ()


_LAYERS = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self, classes, **layers):
        super().__init__()
        self.head = nn.Linear(8, classes)
        for name, layer in layers.items():
            self.add_module(name, layer)

class Shared(Network):
    def forward(self, images):
        x = self.body(images.flatten(1).unflatten(1, (8, 8)).mean(2))
        return self.head(self.again(self.again(x).relu()))

class SequenceFirst(Network):
    def forward(self, images):
        return self.head(self.again(self.body(images.flatten(1).T[..., None]).relu()).mean(0).repeat(1, 2))

def shared(*, shape, classes):
    return Shared(classes, body=nn.Linear(8, 8), again=nn.Linear(8, 8))

def only_shared(*, shape, classes):
    return Shared(classes, body=nn.Identity(), again=nn.Linear(8, 8))

def sequence_first(*, shape, classes):
    return SequenceFirst(classes, body=nn.Linear(1, 4), again=nn.Linear(4, 4))
"""


def test_a_training_without_sns_takes_any_layers_and_says_which_it_cannot_measure(tmp_path: Path) -> None:
    (tmp_path / "layers.py").write_text(_LAYERS)

    def of(name: str, weight: float) -> Checked:
        model = {"name": f"layers:{name}"}
        return check(Experiment.parse({"model": model, "workers": {"num": 1}, "stabilize": {"weight": weight}}))

    assert of("shared", 0.0).neurons == of("shared", 1.0).neurons == {"network.body": 8}
    assert of("only_shared", 0.0).neurons == {}
    assert of("only_shared", 0.0).notices == ()
    with pytest.raises(InputError, match=r"stabilize.layers: got 'auto'; it matches no layer"):
        of("only_shared", 1.0)
    (notice,) = of("sequence_first", 0.0).notices
    assert notice.endswith("network.body, network.again")
    with pytest.raises(InputError, match=r"stabilize.layers: got 'network.body'; the first dimension"):
        of("sequence_first", 1.0)


_RANDOM = """
import torch
from torch import nn

class Random(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.shared = shared

    def forward(self, x):
        if not self.training:
            return x
        chances = torch.full_like(x, 0.5)
        return x * (torch.empty_like(x).bernoulli_(0.5) if self.shared else torch.bernoulli(chances))

def network(classes, shared):
    body = nn.Linear(64, 8), Random(shared), nn.Linear(8, 8)
    return nn.Sequential(nn.Flatten(), *body, nn.ReLU(), nn.Linear(8, classes))

def dropout(*, shape, classes):
    return network(classes, True)

def drawn(*, shape, classes):
    return network(classes, False)
"""


def test_noise_that_sns_would_select_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "noise.py").write_text(_RANDOM)

    def notices(name: str, weight: float) -> tuple[str, ...]:
        model = {"name": f"noise:{name}"}
        return check(Experiment.parse({"model": model, "workers": {"num": 1}, "stabilize": {"weight": weight}})).notices

    assert notices("dropout", 1.0) == notices("drawn", 0.0) == ()
    (notice,) = notices("drawn", 1.0)
    assert notice.startswith("SNS takes noise for sensitivity: equal images differ in training in 1 of 2 layers")
    assert "network.3 the most, by " in notice
    assert "\n" not in notice


def test_neurons_cannot_be_selected_more_rarely_than_once_an_epoch() -> None:
    fields = {"stabilize": {"weight": 1.0, "refresh_steps": 9}, "training": {"batch_size": 128}}
    with pytest.raises(InputError, match=r"stabilize.refresh_steps: got 11; at most 10, the steps of an epoch"):
        check(Experiment.parse({**fields, "stabilize": {"weight": 1.0, "refresh_steps": 11}}))
    check(Experiment.parse(fields))


@pytest.mark.parametrize("how", ["separate", "adversarial"])
def test_a_half_of_one_image_has_no_statistics_of_its_own(tmp_path: Path, how: str) -> None:
    (tmp_path / "networks.py").write_text(_NETWORKS)
    fields: dict[str, Any] = {
        "model": {"name": "networks:narrow"},  # its norm sees one position
        "stabilize": {"weight": 1.0, "pairs": "1/16"},
        "training": {"batch_size": 32, "batch_norm": how, "sync_batch_norm": False},
    }
    refused = f"training.batch_norm: got '{how}'; joint, or more stabilize.pairs: a {{}} compares one pair"
    with pytest.raises(InputError, match=refused.format("worker")):
        check(Experiment.parse({**fields, "workers": {"num": 2}}))
    of_all = {**fields["training"], "sync_batch_norm": True}
    with pytest.raises(InputError, match=refused.format("batch")):
        check(Experiment.parse({**fields, "training": {**of_all, "batch_size": 16}, "workers": {"num": 2}}))
    for change in (
        {"workers": {"num": 1}},  # compares two pairs
        {"training": of_all},  # as all workers do together
        {"stabilize": {"weight": 1.0, "pairs": "1/8"}},
        {"stabilize": {"weight": 0.0}},
        {"model": {"name": "small_cnn"}},
        {"training": {"batch_size": 32}},
        {"objective": {"name": "trades"}},  # compares all
    ):
        check(Experiment.parse({**fields, "workers": {"num": 2}, **change}))
