"""A fingerprint is of what is computed, not of names and files."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from torch import nn

from distsens.evaluation import Fingerprint, fingerprint
from distsens.evaluation.fingerprint import fixed_images
from distsens.models import PixelModel

SHAPE = (2, 9, 7)


def network(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), activation(), nn.Flatten(), nn.Linear(140, 3)).eval()


class Renamed(nn.Module):
    """The same under other names, in another order, with a weight that is tied to itself."""

    def __init__(self, inner: nn.Sequential) -> None:
        super().__init__()
        self.head, self.norm, self.first = inner[4], inner[1], inner[0]
        self.again = self.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.again(self.norm(self.first(images)).relu().flatten(1))
        return out


def of(inner: nn.Module, mean: float = 0.5, std: float = 0.25) -> Fingerprint:
    return fingerprint(PixelModel(inner, (mean,), (std,)).eval(), SHAPE)


def test_names_order_and_float_types_of_files_change_nothing() -> None:
    own = of(network())
    assert of(Renamed(network())) == own
    half = network().half()
    assert of(copy.deepcopy(half).float()).weights_sha256 == of(half.double().float()).weights_sha256
    assert of(network().to(memory_format=torch.channels_last)).agrees(own)


@pytest.mark.parametrize(
    ("other", "same_weights"),
    [
        (of(network(), mean=0.45), True),
        (of(network(), std=0.24), True),
        (of(network(nn.GELU)), True),
        (of(nn.Sequential(network(), nn.Softmax(1))), True),
        (of(nn.Sequential(network(), nn.Linear(3, 4))), False),
    ],
)
def test_another_normalisation_activation_or_head_is_another_function(other: Fingerprint, same_weights: bool) -> None:
    own = of(network())
    assert not own.agrees(other)
    assert not other.agrees(own)
    assert (own.weights_sha256 == other.weights_sha256) is same_weights


@pytest.mark.parametrize(
    "name", ["0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var", "4.weight", "4.bias"]
)
def test_a_change_of_one_value_of_any_tensor_by_a_tenth_is_seen(name: str) -> None:
    changed = network()
    with torch.no_grad():
        changed.state_dict()[name].view(-1)[0] += 0.1
    assert not of(changed).agrees(of(network()))


def test_what_is_not_finite_is_part_of_what_is_computed() -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.stack([images.mean((1, 2, 3)), images.mean((1, 2, 3)) / 0.0], 1)

    own = of(Broken())
    assert own.logits[0][1] is None
    assert own.agrees(of(Broken()))
    assert not own.agrees(Fingerprint(own.weights_sha256, tuple((row[0], 1.0) for row in own.logits)))


def test_equal_logits_agree_whatever_their_size_and_constants_that_differ_do_not() -> None:
    rows = ((1000.0, 1000.0),)
    assert Fingerprint("", rows).agrees(Fingerprint("", ((1000.0, 1000.00005),)))
    assert not Fingerprint("", rows).agrees(Fingerprint("", ((1001.0, 1000.0),)))
    assert Fingerprint("", ((0.0, 0.0),)).agrees(Fingerprint("", ((0.0, 0.0),)))
    assert not Fingerprint("", ((0.0, 0.0),)).agrees(Fingerprint("", ((0.0, 1e-9),)))


def test_the_fixed_images_are_the_same_on_every_machine_and_use_no_generator() -> None:
    before = torch.random.get_rng_state()
    images = fixed_images(SHAPE)
    assert images.shape == (4, *SHAPE)
    content = (images * 255).round().to(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "f9d353dd74848948"
    of(nn.Sequential(network(), nn.Dropout()).train().eval())
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(images[3, :, :8, :7], images[3, :, :1, :1].expand(-1, 8, 7)), "a square of eight pixels"
