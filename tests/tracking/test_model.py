from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pytest
import torch
from mlflow.artifacts import download_artifacts
from torch import Tensor, nn

from distsens.errors import InputError
from distsens.tracking import TrackedRun

if TYPE_CHECKING:
    from tests.tracking.conftest import Store

EXAMPLE = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)


class Classifier(nn.Module):
    """Convolution, batch norm and dropout: what behaves otherwise in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(4 * 36, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images - 0.5).flatten(1))


class Branching(nn.Module):
    """Its computation depends on the images, which no trace can hold."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * (2 if images.sum() > 3 else 1)


class PairsOnly(nn.Module):
    """Works for two images and no other number."""

    def forward(self, images: Tensor) -> Tensor:
        return images.view(2, -1)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Classifier()
    model(torch.rand(16, 3, 8, 8)).sum().backward()
    return model


@pytest.fixture(autouse=True)
def _reader(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are read back as anybody would, and never unpickled."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


def test_the_logged_model_computes_the_same_logits_and_input_gradients(run: TrackedRun, model: nn.Module):
    uri = run.log_model(model, EXAMPLE, b"")
    assert uri is not None
    model.eval()
    for address in (uri, f"runs:/{run.run_id}/model"):
        loaded = mlflow.pytorch.load_model(address)
        for count in (1, 2, 7):
            images = torch.rand(count, 3, 8, 8, requires_grad=True)
            torch.testing.assert_close(loaded(images), model(images))
            (expected,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
            (actual,) = torch.autograd.grad(loaded(images)[:, 0].sum(), images)
            torch.testing.assert_close(actual, expected)


def test_the_callers_model_is_left_as_it_was(run: TrackedRun, model: nn.Module):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    run.log_model(model, EXAMPLE, b"")
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=0)


def test_logging_touches_neither_mlflows_active_run_nor_its_address(run: TrackedRun, model: nn.Module, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    before = mlflow.get_tracking_uri()
    run.log_model(model, EXAMPLE, b"")
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == before


def test_the_weights_are_an_artifact(run: TrackedRun, model: nn.Module, tmp_path: Path):
    run.log_model(model, EXAMPLE, b"safetensors")
    local = download_artifacts(run_id=run.run_id, artifact_path="weights/model.safetensors", dst_path=str(tmp_path))
    assert Path(local).read_bytes() == b"safetensors"


def test_the_model_declares_its_input_and_output(run: TrackedRun, model: nn.Module):
    info = mlflow.models.get_model_info(run.log_model(model, EXAMPLE, b""))
    assert [spec.shape for spec in info.signature.inputs.inputs] == [(-1, 3, 8, 8)]
    assert [spec.shape for spec in info.signature.outputs.inputs] == [(-1, 10)]
    assert info.run_id == run.run_id


def test_a_resumed_run_replaces_its_model(store: Store, run: TrackedRun, model: nn.Module):
    first = run.log_model(model, EXAMPLE, b"")
    with torch.no_grad():
        model.head.bias.add_(1)
    second = run.log_model(model, EXAMPLE, b"")
    assert second is not None
    images = torch.from_numpy(EXAMPLE)
    torch.testing.assert_close(mlflow.pytorch.load_model(second)(images), model.eval()(images))
    assert len(store.client.get_run(run.run_id).outputs.model_outputs) == 1
    assert first == second


@pytest.mark.parametrize("untraceable", [Branching(), PairsOnly()], ids=["branching", "pairs only"])
def test_a_model_that_cannot_be_traced_leaves_its_weights_and_the_reason(
    store: Store, run: TrackedRun, untraceable: nn.Module
):
    assert run.log_model(untraceable, EXAMPLE, b"safetensors") is None
    found = store.client.get_run(run.run_id)
    assert found.data.tags["distsens.model"].startswith("weights only: ")
    assert found.outputs.model_outputs == []
    assert [file.path for file in store.client.list_artifacts(run.run_id, "weights")] == ["weights/model.safetensors"]


def test_an_example_of_one_image_is_refused(run: TrackedRun, model: nn.Module):
    with pytest.raises(InputError, match="at least 2"):
        run.log_model(model, EXAMPLE[:1], b"")


def test_a_registered_model_is_what_its_alias_names_until_a_newer_one_is(
    store: Store, run: TrackedRun, model: nn.Module
) -> None:
    uri = run.log_model(model.eval(), EXAMPLE, b"")
    assert uri is not None
    first = run.register(uri, "robust", "champion", {"trial": "t1"}, run_id=run.run_id)
    second = run.register(uri, "robust", "champion", {"trial": "t2"}, run_id=run.run_id)
    named = store.client.get_model_version_by_alias("robust", "champion")
    assert (named.version, named.tags, named.run_id) == (int(second), {"trial": "t2"}, run.run_id)
    assert int(second) == int(first) + 1
    mlflow.set_registry_uri(store.uri)
    images = torch.from_numpy(EXAMPLE)
    loaded = mlflow.pytorch.load_model("models:/robust@champion")
    torch.testing.assert_close(loaded(images), model(images))
