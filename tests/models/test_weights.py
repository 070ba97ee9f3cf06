from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from distsens.errors import InputError
from distsens.models import (
    PixelModel,
    build,
    load_initial_weights,
    normalisation_of,
    state_of,
    state_to_bytes,
    weights_digest,
)


def small(seed: int, *, name: str = "lenet5", classes: int = 4, mean: float = 0.5) -> PixelModel:
    return build(name, shape=(1, 8, 8), classes=classes, mean=(mean,), std=(0.25,), seed=seed)


def saved(folder: Path, content: Any, name: str = "weights.safetensors") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def equal(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def refusal(path: Path, model: PixelModel | None = None, sha256: str | None = None) -> InputError:
    with pytest.raises(InputError) as raised:
        load_initial_weights(model or small(0), path, sha256)
    assert "\n" not in str(raised.value)
    return raised.value


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("part", ["classifier", "network"])
def test_a_classifiers_and_a_networks_weights_are_taken_from_every_kind_of_file(
    part: str, prefix: str, suffix: str, tmp_path: Path
) -> None:
    trained, model = small(1), small(0)
    state = (trained if part == "classifier" else trained.network).state_dict()
    load_initial_weights(model, saved(tmp_path, prefixed(dict(state), prefix), f"weights.{suffix}"))
    assert equal(model, trained)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("entry", ["state_dict", "model_state_dict", "model"])
def test_a_state_dict_may_be_an_entry_of_a_checkpoint(entry: str, tmp_path: Path) -> None:
    trained, model = small(1), small(0)
    checkpoint = {"epoch": 7, "optimizer": {"lr": 0.1}, entry: trained.network.state_dict()}
    load_initial_weights(model, saved(tmp_path, checkpoint, "checkpoint.pt"))
    assert equal(model, trained)


def test_statistics_of_normalisation_layers_are_taken_too(tmp_path: Path) -> None:
    trained, model = small(1, name="preact_resnet18"), small(0, name="preact_resnet18")
    trained(torch.rand(8, 1, 8, 8))
    load_initial_weights(model, saved(tmp_path, trained.state_dict()))
    assert equal(model, trained)
    assert model.network.bn.num_batches_tracked == 1  # type: ignore[union-attr]


def test_a_wrong_mean_or_std_is_refused_as_the_weights_were_trained_with_another(tmp_path: Path) -> None:
    error = refusal(saved(tmp_path, small(1, mean=0.4).state_dict()))
    assert (error.field, error.value) == ("model.mean", [0.5])
    assert "the weights were trained with [0.4]" in error.allowed


@pytest.mark.parametrize(("mean", "fits"), [((0.3, 0.3, 0.3), True), ((0.3, 0.3, 0.4), False)])
def test_one_number_for_all_channels_is_the_same_as_one_for_each(
    mean: tuple[float, ...], fits: bool, tmp_path: Path
) -> None:
    stored = PixelModel(nn.Linear(2, 2), mean, (1.0,))
    model = PixelModel(nn.Linear(2, 2), (0.3,), (1.0, 1.0, 1.0))
    path = saved(tmp_path, stored.state_dict())
    if fits:
        load_initial_weights(model, path)
        assert torch.equal(model.network.weight, stored.network.weight)  # type: ignore[arg-type]
    else:
        assert refusal(path, model).field == "model.mean"


def test_another_number_of_classes_is_named(tmp_path: Path) -> None:
    error = refusal(saved(tmp_path, small(1, classes=100).state_dict()))
    assert error.field == "model.weights"
    shapes = "fc3.weight (100, 84), here (4, 84); fc3.bias (100,), here (4,)"
    assert error.allowed == f"for 100 classes, where 4 are needed ({shapes})"


def test_a_layer_of_another_network_is_not_taken_for_one_of_other_classes(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.zeros(7, *small(0).network.conv1.weight.shape[1:])}  # type: ignore[union-attr]
    assert refusal(saved(tmp_path, state)).allowed.startswith(
        "of another network: other shapes (conv1.weight (7, 1, 5, 5)"
    )


def test_other_shapes_are_shown(tmp_path: Path) -> None:
    wide = build("wrn10_2", shape=(1, 8, 8), classes=4, mean=(0.5,), std=(0.25,), seed=0)
    path = saved(tmp_path, wide.state_dict())
    error = refusal(path, build("wrn10_1", shape=(1, 8, 8), classes=4, mean=(0.5,), std=(0.25,), seed=0))
    shapes = "layer1.0.conv1.weight (32, 16, 3, 3), here (16, 16, 3, 3); layer1.0.bn2.weight (32,), here (16,); "
    assert error.allowed.startswith(f"of another network: other shapes ({shapes}")
    assert "30 more)" in error.allowed


def test_missing_and_unexpected_weights_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    state = {f"layer{number}.weight": torch.zeros(1) for number in range(5)}
    error = refusal(saved(tmp_path, state))
    assert "10 weights (conv1.weight, conv1.bias, conv2.weight, 7 more) missing" in error.allowed
    assert "5 weights (layer0.weight, layer1.weight, layer2.weight, 2 more) unexpected" in error.allowed


def test_a_single_missing_weight_is_refused(tmp_path: Path) -> None:
    state = small(1).state_dict()
    del state["network.fc2.bias"]
    assert "1 weights (fc2.bias) missing, 0 weights unexpected" in refusal(saved(tmp_path, state)).allowed


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


def test_no_code_of_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "holds no tensors that can be read safely" in refusal(saved(tmp_path, {"a": Evil()}, "evil.pt")).allowed
    assert not Path("evil").exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("content", [b"", b"nothing of the kind"])
def test_a_damaged_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert "holds no tensors that can be read safely" in refusal(path).allowed


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_was_cut_off_is_refused(name: str, part: float, tmp_path: Path) -> None:
    path = saved(tmp_path, small(1).state_dict(), name)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert "holds no tensors that can be read safely" in refusal(path).allowed


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {}, {"epoch": 3}, torch.zeros(2)], ids=["list", "{}", "int", "1"]
)
def test_a_file_without_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    assert "holds no state dict" in refusal(saved(tmp_path, content, "a.pth")).allowed


def test_a_missing_file_a_folder_and_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "a.pt").allowed
    (tmp_path / "folder.pt").mkdir()
    assert "cannot be read (Is a directory)" in refusal(tmp_path / "folder.pt").allowed
    assert refusal(tmp_path / "a.npz").allowed == "must be a .safetensors, .pt, .pth file"


def test_a_file_must_have_the_digest_that_is_asked_for(tmp_path: Path) -> None:
    trained, model = small(1), small(0)
    path = saved(tmp_path, trained.state_dict())
    digest = weights_digest(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    load_initial_weights(model, path, digest)
    assert equal(model, trained)
    error = refusal(path, sha256="0" * 64)
    assert error.field == "model.weights_sha256"
    assert digest in error.allowed


def test_images_of_another_shape_are_named(tmp_path: Path) -> None:
    colour = build("lenet5", shape=(3, 8, 8), classes=4, mean=(0.5,), std=(0.25,), seed=1)
    allowed = refusal(saved(tmp_path, colour.state_dict())).allowed
    assert allowed == "for images of another shape (conv1.weight (6, 3, 5, 5), here (6, 1, 5, 5))"


def test_another_shape_and_other_classes_at_once_may_be_what_is_wrong(tmp_path: Path) -> None:
    other = build("lenet5", shape=(3, 8, 8), classes=7, mean=(0.5,), std=(0.25,), seed=1)
    allowed = refusal(saved(tmp_path, other.state_dict())).allowed
    assert allowed.startswith("of another network, or for other images and classes: other shapes (conv1.weight ")


def test_a_state_is_the_same_after_bytes_whatever_its_layout_order_and_sharing() -> None:
    shared = torch.rand(4, 3)
    state = {"a": shared.T, "b": shared, "c": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    content = state_to_bytes(state)
    found = state_of(content, "a.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert state_to_bytes(dict(reversed(state.items()))) == content


def test_the_normalisation_of_a_whole_classifier_is_known_and_that_of_a_network_is_not() -> None:
    model = PixelModel(nn.Linear(2, 2), (0.25, 0.5), (0.5,))
    assert normalisation_of(model.state_dict()) == ((0.25, 0.5), (0.5,))
    assert normalisation_of(model.network.state_dict()) is None
