"""A subject builds the classifier that it was made of, anywhere, or says in one line why it cannot."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distsens.errors import InputError
from distsens.evaluation import Architecture, Subject
from distsens.experiment import Experiment
from distsens.models import PixelModel, build, state_to_bytes

SHAPE, CLASSES = (1, 12, 12), 5
CNN = Architecture("small_cnn", (0.5,), (0.25,))


def trained(name: str = "small_cnn", shape: tuple[int, int, int] = SHAPE, classes: int = CLASSES) -> PixelModel:
    return build(name, shape=shape, classes=classes, mean=(0.5,), std=(0.25,), seed=3)


def subject(state: dict[str, Tensor], architecture: Architecture = CNN) -> Subject:
    return Subject("mine", "folder/mine.pt", architecture, state_to_bytes(state))


def refusal(of: Subject, shape: tuple[int, int, int] = SHAPE, classes: int = CLASSES) -> InputError:
    with pytest.raises(InputError) as raised:
        of.build(shape, classes)
    assert "\n" not in str(raised.value)
    return raised.value


def fixed_size(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Somebody's network, for black and white images of 12x12 and 5 classes whatever is asked for."""
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 5))


def picky(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    if shape[1] != 12:
        raise ValueError("images of 12x12 alone,\nand no others")
    return fixed_size(shape=shape, classes=classes)


def without_arguments() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 5))


def own(name: str) -> Architecture:
    return Architecture(f"{__name__}:{name}")


def test_the_classifier_is_built_as_it_was_in_eval_mode_and_channels_last() -> None:
    model = trained("preact_resnet18")
    model(torch.rand(4, *SHAPE))  # its running statistics are part of it
    built = subject(dict(model.state_dict()), Architecture("preact_resnet18", (0.5,), (0.25,))).build(SHAPE, CLASSES)
    assert isinstance(built, PixelModel)
    assert not any(module.training for module in built.modules())
    first = next(module for module in built.modules() if isinstance(module, nn.Conv2d) and module.in_channels > 1)
    assert first.weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.rand(3, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(built(images), model.eval()(images))


def test_a_subject_travels_by_pickle() -> None:
    one = Subject("a", "b", CNN, state_to_bytes(trained().state_dict()), Experiment.parse({"seed": 4}), "a", 3, "id")
    other = pickle.loads(pickle.dumps(one))
    assert other == one
    assert torch.equal(other.build(SHAPE, CLASSES).network.conv1.weight, trained().network.conv1.weight)


def test_its_digest_is_that_of_the_safetensors_file_and_its_weights_are_not_printed() -> None:
    one = subject(dict(trained().state_dict()))
    assert one.sha256 == hashlib.sha256(one.weights).hexdigest()
    assert len(repr(one)) < 500


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    subject(dict(trained().state_dict())).build(SHAPE, CLASSES)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("prefix", ["", "module.", "network.", "module.network.", "network.module."])
def test_prefixes_of_wrappers_are_handled(prefix: str) -> None:
    model = trained()
    state = {prefix + name: tensor for name, tensor in model.network.state_dict().items()}
    if "network" in prefix:
        outer = "module." if prefix.startswith("module") else ""
        state |= {f"{outer}mean": model.mean, f"{outer}std": model.std}
    built = subject(state).build(SHAPE, CLASSES)
    assert torch.equal(built.network.conv1.weight, model.network.conv1.weight)  # type: ignore[union-attr]


def test_another_number_of_classes_is_named() -> None:
    error = refusal(subject(dict(trained(classes=7).state_dict())))
    assert (error.field, error.value) == ("model", "folder/mine.pt")
    assert error.allowed.startswith("for 7 classes, where 5 are needed (")


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 16, 16)])
def test_another_shape_of_images_is_named(shape: tuple[int, int, int]) -> None:
    error = refusal(subject(dict(trained(shape=shape).state_dict())))
    assert error.field == "model"
    assert error.allowed.startswith("for images of another shape (")
    assert "here" in error.allowed


def test_another_network_is_told_by_missing_unexpected_and_other_weights() -> None:
    state: dict[str, Any] = {f"features.{number}.weight": torch.zeros(1) for number in range(5)}
    allowed = refusal(subject(state)).allowed
    assert allowed.startswith("of another network: ")
    assert "5 weights (features.0.weight, features.1.weight, features.2.weight, 2 more) unexpected" in allowed
    state["conv1.weight"] = torch.zeros(9, 1, 3, 3)
    allowed = refusal(subject(state)).allowed
    assert allowed.startswith("of another network: other shapes (conv1.weight (9, 1, 3, 3), here (")
    assert "missing, 5 weights (features.0.weight" in allowed


def test_a_factory_that_ignores_shape_and_classes_is_refused_where_they_do_not_fit() -> None:
    one = subject(dict(without_arguments().state_dict()), own("fixed_size"))
    one.build(SHAPE, CLASSES)
    error = refusal(one, shape=(3, 12, 12))
    assert (error.field, error.value) == ("factory", f"{__name__}:fixed_size")
    assert error.allowed.startswith("must take images of shape (3, 12, 12) (")
    assert refusal(one, classes=10).allowed == "must return logits of shape (1, 10) for one image, not (1, 5)"


def test_what_a_factory_itself_refuses_is_one_line() -> None:
    error = refusal(subject(dict(without_arguments().state_dict()), own("picky")), shape=(1, 9, 9))
    assert error.allowed == (
        "cannot be made for images of shape (1, 9, 9) and 5 classes (images of 12x12 alone, and no others)"
    )


@pytest.mark.parametrize(
    ("architecture", "field", "reason"),
    [
        (own("without_arguments"), "factory", "must be a function of shape and classes"),
        (own("nothing"), "factory", "has no nothing"),
        (Architecture("small_cn"), "factory", "close to it are small_cnn"),
        (Architecture("small_cnn", (0.1, 0.2)), "mean", "must be one number"),
        (Architecture("small_cnn", std=(0.0,)), "std", "greater than 0"),
        (Architecture("small_cnn", small_images=True), "small_images", "replaces the stem of torchvision's"),
        (Architecture("small_cnn", (0.1,), (0.25,)), "mean", "the weights were trained with [0.5]"),
    ],
)
def test_a_wrong_setting_is_named_as_its_option_is(architecture: Architecture, field: str, reason: str) -> None:
    error = refusal(subject(dict(trained().state_dict()), architecture))
    assert error.field == field
    assert reason in error.allowed
