from __future__ import annotations

import hashlib
from collections import OrderedDict
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
    load_state,
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
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("part", ["classifier", "network"])
def test_a_classifiers_and_a_networks_weights_are_taken_from_every_kind_of_file(
    part: str, prefix: str, suffix: str, tmp_path: Path
) -> None:
    trained, model = small(1), small(0)
    state = (trained if part == "classifier" else trained.network).state_dict()
    load_initial_weights(model, saved(tmp_path, prefixed(dict(state), prefix), f"weights.{suffix}"))
    assert equal(model, trained)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_entry_of_a_checkpoint_may_be_named_behind_the_file(tmp_path: Path) -> None:
    raw, average, model = small(1), small(2), small(0)
    path = saved(tmp_path, {"model": raw.network.state_dict(), "ema": average.network.state_dict()}, "both.pt")
    load_initial_weights(model, path)
    assert equal(model, raw)
    load_initial_weights(model, Path(f"{path}#ema"), weights_digest(path))
    assert equal(model, average)


@pytest.mark.parametrize(
    "prefix",
    [
        *("_orig_mod.", "model.", "net.", "network.", "backbone.", "classifier.", "1.", "whatever.it.is."),
        *("module._orig_mod.", "model.module._orig_mod.net.", "_forward_module.model."),
    ],
)
def test_what_wrappers_put_before_all_names_is_removed_in_any_nesting(prefix: str) -> None:
    trained, model = small(1), small(0)
    load_state(model, prefixed(trained.network.state_dict(), prefix), "a.pt")
    assert equal(model, trained)


def test_what_wrappers_put_between_names_is_removed_in_the_file_and_in_the_network() -> None:
    vgg = build("vgg11_bn", shape=(1, 32, 32), classes=4, mean=(0.5,), std=(0.25,), seed=1)
    state = {name.replace("features.", "features.module."): tensor for name, tensor in vgg.network.state_dict().items()}
    assert state.keys() != vgg.network.state_dict().keys()
    model = build("vgg11_bn", shape=(1, 32, 32), classes=4, mean=(0.5,), std=(0.25,), seed=0)
    load_state(model, state, "a.pt")
    assert equal(model, vgg)
    wrapped = PixelModel(nn.DataParallel(nn.Sequential(nn.Linear(2, 2))), (0.0,), (1.0,))
    bare = nn.Sequential(nn.Linear(2, 2)).state_dict()
    load_state(wrapped, bare, "a.pt")
    assert torch.equal(wrapped.state_dict()["network.module.0.weight"], bare["0.weight"])
    named = PixelModel(nn.Sequential(OrderedDict(net=nn.Sequential(nn.Linear(2, 2)))), (0.0,), (1.0,))
    load_state(named, bare, "a.pt")
    assert torch.equal(named.state_dict()["network.net.0.weight"], bare["0.weight"])


@pytest.mark.parametrize(
    "left", ["criterion.weight", "train_metrics.confusion", "total_ops", "model.conv1.total_params"]
)
def test_what_a_training_or_a_tool_left_beside_the_network_is_left_out(left: str) -> None:
    trained, model = small(1), small(0)
    load_state(model, prefixed(trained.network.state_dict(), "model.") | {left: torch.ones(9)}, "a.pt")
    assert equal(model, trained)


def test_a_head_beside_the_network_is_not_left_out() -> None:
    state = prefixed(small(1).network.state_dict(), "model.") | {"head.weight": torch.ones(9)}
    with pytest.raises(InputError, match=r"0 weights missing, 1 weights \(head.weight\) unexpected"):
        load_state(small(0), state, "a.pt")


def test_two_networks_in_one_state_are_told_apart_by_name_or_by_shape() -> None:
    student, teacher = small(1).network.state_dict(), small(2).network.state_dict()
    both = prefixed(student, "student.") | prefixed(teacher, "teacher.")
    with pytest.raises(InputError, match="more than once; name one as FILE#NAME, of student, teacher"):
        load_state(small(0), both, "a.pt")
    content = state_to_bytes(both)
    model = small(0)
    load_state(model, state_of(content, "a.safetensors", "teacher"), "a.safetensors")
    assert equal(model.network, small(2).network)  # type: ignore[arg-type]
    wide = small(3, classes=9).network.state_dict()
    with pytest.raises(InputError, match="unexpected"):
        load_state(small(0), prefixed(wide, "big.") | prefixed(student, "small."), "a.pt")


@pytest.mark.parametrize(("mean", "std"), [("mean", "std"), ("mu", "sigma")])
@pytest.mark.parametrize("prefix", ["normalize.", "", "0."])
def test_how_a_wrapper_normalised_must_be_how_the_model_does(prefix: str, mean: str, std: str) -> None:
    trained, model = small(1), small(0)
    state = prefixed(trained.network.state_dict(), "model.")
    state |= {prefix + mean: torch.full((1, 1, 1), 0.5), prefix + std: torch.full((1, 1, 1), 0.25)}
    load_state(model, state, "a.pt")
    assert equal(model, trained)
    state[prefix + std] = torch.full((1, 1, 1), 0.3)
    with pytest.raises(InputError, match=r"model.std: got \[0.25\]; the weights were trained with \[0.3\]"):
        load_state(model, state, "a.pt")


def test_images_are_not_normalised_twice_where_the_network_holds_mean_and_std_itself() -> None:
    inside = small(1)
    state = dict(inside.state_dict())
    outside = PixelModel(small(0), *normalisation_of(state))  # type: ignore[misc]
    with pytest.raises(InputError, match=r"model.mean: got \[0.5\]; .*say --model.mean 0 --model.std 1"):
        load_state(outside, state, "a.pt")
    plain = PixelModel(small(0), (0.0,), (1.0,))
    load_state(plain, state, "a.pt")
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(plain.eval()(images), inside.eval()(images))


def test_normalisation_layers_need_not_count_their_batches() -> None:
    trained, model = (small(seed, name="preact_resnet18") for seed in (1, 0))
    state = {name: one for name, one in trained.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_state(model, state, "a.pt")
    assert equal(model, trained)


def test_no_name_of_a_file_steers_the_terminal_or_fills_it() -> None:
    state = {"\x1b[31mred\n\u202e": torch.ones(1), "x" * 5000: torch.ones(1), "": torch.ones(1)}
    with pytest.raises(InputError) as raised:
        load_state(small(0), state, "a.pt")
    assert str(raised.value).isprintable()
    assert "\\x1b[31mred\\n\\u202e" in str(raised.value)
    assert len(str(raised.value)) < 500


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
