from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from distsens.errors import InputError
from distsens.models import MODELS, PixelModel, build

_OWN = """
import torch
from torch import nn

SIZE = 3

def linear(*, shape, classes):
    channels, height, width = shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))

def wide(*, shape, classes):
    return linear(shape=shape, classes=classes + 1)

def narrow(*, shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(5, classes))

def unaware():
    return nn.Identity()

def picky(*, shape, classes):
    raise ValueError("no images but mine,\\nwhatever they are")

def forgetful(*, shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape.width, classes))

def lazy(*, shape, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))

def normalised(*, shape, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes), nn.BatchNorm1d(classes))

def function(*, shape, classes):
    return lambda images: images

class Pair(nn.Module):
    def __init__(self, *, shape, classes):
        super().__init__()

    def forward(self, images):
        return images, images
"""


def _build(name: str, **changes: object) -> PixelModel:
    arguments = {"shape": (1, 8, 8), "classes": 10, "mean": (0.1,), "std": (0.3,), "seed": 0} | changes
    return build(name, **arguments)  # type: ignore[arg-type]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A current folder with models of one's own in ``ownmodels.nets``, which is not on the import path."""
    package = tmp_path / "ownmodels"
    package.mkdir()
    (package / "nets.py").write_text(_OWN)
    (package / "broken.py").write_text("import no_such_dependency\n")
    (package / "unfinished.py").write_text("def linear(\n")
    monkeypatch.chdir(tmp_path)
    yield
    for module in [module for module in sys.modules if module.partition(".")[0] == "ownmodels"]:
        del sys.modules[module]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_by_name_takes_pixels_and_is_ready_for_training(name: str) -> None:
    model = _build(name, shape=(3, 32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_alone_decides_the_weights_and_the_global_generator_stays(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = _build(name).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = _build(name).state_dict(), _build(name, seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    weights = [key for key, values in first.items() if key.endswith("weight") and values.ndim > 1]
    assert len(weights) >= 5
    assert not any(torch.equal(first[key], other[key]) for key in weights)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_keeps_its_generator_too() -> None:
    before = torch.cuda.get_rng_state()
    _build("small_cnn")
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_trying_the_model_leaves_no_trace_in_it() -> None:
    model = _build("resnet18")
    assert all(module.num_batches_tracked == 0 for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.usefixtures("own")
def test_a_factory_in_the_current_folder_is_found_and_the_import_path_is_left_as_it_was() -> None:
    path = list(sys.path)
    model = _build("ownmodels.nets:linear")
    assert isinstance(model.network, nn.Sequential)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert sys.path == path


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("factory", ["lazy", "normalised"])
def test_a_lazy_factory_is_initialised_from_the_seed(factory: str) -> None:
    name = f"ownmodels.nets:{factory}"
    first, again = _build(name).state_dict(), _build(name).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "resnet",
            'must be one of small_cnn, lenet5, resnet18, .* or "package.module:factory"; close to it are resnet',
        ),
        ("wrn34", "must be one of .*wrn<depth>_<width>"),
        ("wrn034_10", "must be one of"),
        ("torchvision:resnet5", "close to it are resnet50"),
        ("torchvision:", "must be one of"),
        ("ownmodels.nets", "must be one of"),
        ("ownmodels.nets:", "must be one of"),
        (":linear", "must be one of"),
        (".nets:linear", "must be one of"),
        ("ownmodels/nets.py:linear", "must be one of"),
        ("ownmodels.nothing:linear", "module ownmodels.nothing cannot be imported"),
        ("ownmodels.broken:linear", "No module named 'no_such_dependency'"),
        ("ownmodels.unfinished:linear", r"cannot be imported \(SyntaxError: "),
        ("ownmodels.nets:forgetful", r"cannot be made .* \(AttributeError: .*'width', .*nets\.py:\d+\)"),
        ("ownmodels.nets:quadratic", "module ownmodels.nets has no quadratic"),
        ("ownmodels.nets:SIZE", "SIZE must be a function of shape and classes"),
        ("ownmodels.nets:unaware", r"unaware must be a function of shape and classes \(.*'shape'\)"),
        (
            "ownmodels.nets:picky",
            r"cannot be made for images of shape \(1, 8, 8\) and 10 classes \(no images",
        ),
        ("ownmodels.nets:function", "must return an nn.Module, not a function"),
        ("ownmodels.nets:wide", r"must return logits of shape \(1, 10\) for one image, not \(1, 11\)"),
        ("ownmodels.nets:Pair", r"must return logits of shape \(1, 10\) for one image, not tuple"),
        ("ownmodels.nets:narrow", r"must take images of shape \(1, 8, 8\)"),
    ],
)
def test_a_name_that_leads_to_no_model_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        _build(name)
    assert error.value.field == "model.name"
    assert error.value.value == name
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", ["small_cnn", "lenet5"])
def test_images_too_small_for_the_layers_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"must take images of shape \(1, 3, 3\)"):
        _build(name, shape=(1, 3, 3))


@pytest.mark.parametrize("numbers", [(), (0.1, 0.2)])
@pytest.mark.parametrize("field", ["mean", "std"])
def test_normalisation_must_fit_the_channels(field: str, numbers: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="one for each of 3 channels") as error:
        _build("small_cnn", shape=(3, 8, 8), **{field: numbers})
    assert error.value.field == f"model.{field}"


@pytest.mark.parametrize("std", [0.0, -1.0])
def test_a_standard_deviation_is_positive(std: float) -> None:
    with pytest.raises(InputError, match=r"model\.std: .* greater than 0"):
        _build("small_cnn", std=(std,))
