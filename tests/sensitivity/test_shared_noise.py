from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import stochastic_depth

from distsens.sensitivity import ActivationProbe, PairForwards, SharedNoise, pair_noise, same_noise


class Noisy(nn.Module):
    """A network that adds noise of one kind to images (N, 2, 6, 6) of at first 8 channels."""

    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.noise = nn.Conv2d(2, 8, 3), noise
        self.hidden, self.head = nn.Linear(128, 6), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(self.noise(self.body(images)).flatten(1)).relu())
        return logits


class Attention(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed = self.attention(tokens, tokens, tokens, need_weights=self.need_weights)[0]
        return mixed.transpose(1, 2).reshape(x.shape)


def windows(x: Tensor) -> Tensor:
    parts = x.reshape(len(x), 8, 2, 8).permute(0, 2, 1, 3).reshape(2 * len(x), 8, 8)
    return F.dropout(parts, 0.5).reshape(len(x), 2, 8, 8).permute(0, 2, 1, 3).reshape(x.shape)


KINDS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "dropout": lambda: nn.Dropout(0.5),
    "in place": lambda: nn.Dropout(0.5, inplace=True),
    "of channels": lambda: nn.Dropout2d(0.5),
    "of a function": lambda: lambda x: F.dropout(x, 0.3),
    "alpha dropout": lambda: nn.AlphaDropout(0.5),
    "stochastic depth": lambda: lambda x: stochastic_depth(x, 0.5, "row"),
    "a path of its own": lambda: lambda x: x * (0.7 + torch.rand(len(x), 1, 1, 1)).floor(),
    "added": lambda: lambda x: x + 0.1 * torch.randn_like(x),
    "in windows": lambda: windows,
    "attention": lambda: Attention(True),
    "attention without weights": lambda: Attention(False),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    with ActivationProbe(model, "hidden") as probe, torch.no_grad():
        model(images)
    return probe.outputs["hidden"]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_images_of_a_pair_say_the_same_in_training(kind: str) -> None:
    model, x = Noisy(KINDS[kind]()).train(), torch.rand(8, 2, 6, 6)
    assert not torch.equal(*outputs(model, torch.cat([x, x])).chunk(2))
    noise = SharedNoise(model, pair_noise(8))
    with noise:
        benign, twins = outputs(model, torch.cat([x, x])).chunk(2)
    assert torch.equal(benign, twins)
    assert noise.drawn


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "alpha dropout"])
def test_an_image_whose_noise_others_get_has_the_noise_that_it_would_have_had(kind: str) -> None:
    model, x = Noisy(KINDS[kind]()).train(), torch.rand(6, 2, 6, 6)
    outputs(model, x)  # finds the layer, so that only one forward follows
    with same_noise(model):
        plain = outputs(model, x)
    source = torch.tensor([0, 1, 2, 3, 1, 2])
    with same_noise(model), SharedNoise(model, source):
        shared = outputs(model, x)
    assert torch.equal(shared[:4], plain[:4])
    assert not torch.equal(shared[4:], plain[4:])


@pytest.mark.parametrize("saves_memory", [False, True])
def test_the_gradient_is_that_of_the_masks_that_were_shared(saves_memory: bool) -> None:
    def dropped(features: Tensor) -> Tensor:
        if saves_memory:  # which draws the mask once more in the backward pass
            return checkpoint(F.dropout, features, 0.5, use_reentrant=False)
        return F.dropout(features, 0.5)

    model, x = Noisy(dropped).train(), torch.rand(6, 2, 6, 6)
    with same_noise(model), SharedNoise(model, pair_noise(3)):
        found = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    with same_noise(model):
        mask = F.dropout(torch.ones(6, 8, 4, 4), 0.5)[:3].repeat(2, 1, 1, 1)
    model.noise = lambda features: features * mask
    by_hand = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for a, b in zip(found, by_hand, strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_as_one_operation_is_shared_too() -> None:
    x = torch.rand(6, 40, requires_grad=True)
    with SharedNoise(nn.Linear(1, 1), pair_noise(3)):
        dropped, mask = torch.native_dropout(x, 0.25, True)
    assert torch.equal(mask[:3], mask[3:])
    assert mask[0].any()
    assert not torch.equal(mask[0], mask[1])
    torch.testing.assert_close(dropped, x * mask / 0.75)
    torch.testing.assert_close(torch.autograd.grad(dropped.sum(), x)[0], mask / 0.75)


WEIGHTS = nn.Linear(6, 8, bias=False).weight


@pytest.mark.parametrize(
    ("draw", "images"),
    [
        (lambda: torch.randn(3, 8), 1),
        (lambda: torch.randn(5), 1),
        (lambda: torch.randn(WEIGHTS.shape), 2),
        (lambda: torch.randn_like(WEIGHTS), 4),  # as many images as rows
        (lambda: F.dropout(WEIGHTS), 4),
    ],
)
def test_noise_of_the_weights_and_of_other_sizes_is_left_alone(draw: Callable[[], Tensor], images: int) -> None:
    layer = nn.Linear(6, 8, bias=False)
    with same_noise(layer):
        plain = draw()
    with same_noise(layer), SharedNoise(layer, pair_noise(images)):
        assert torch.equal(draw(), plain)


def test_as_many_images_as_rows_of_a_weight_share_theirs_still() -> None:
    with SharedNoise(nn.Linear(6, 8), pair_noise(4)):
        benign, twins = F.dropout(torch.ones(8, 6)).chunk(2)
    assert torch.equal(benign, twins)


def test_ablation_sees_a_network_that_always_draws_draw_the_same() -> None:
    model, x = Noisy(lambda features: F.dropout(features, 0.5)).eval(), torch.rand(5, 2, 6, 6)
    generator = torch.get_rng_state()
    forwards = PairForwards(model, ["hidden"], x, x)
    assert torch.equal(forwards.benign_logits, forwards.adversarial_logits)
    assert torch.equal(forwards.patched({"hidden": torch.arange(6)}), forwards.benign_logits)
    assert torch.equal(torch.get_rng_state(), generator)
