from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from distsens.errors import InputError
from distsens.sensitivity import (
    ActivationProbe,
    Intervention,
    Overwriting,
    PairForwards,
    constant_neurons,
    flipped_at,
    match_layers,
    take_neurons,
)


class Tokens(nn.Module):
    """Tokens (N, T, C) of an image, mixed, and their mean's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.mix = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.mix(torch.relu(self.embed(images.flatten(1).reshape(len(images), -1, 4))))
        logits: Tensor = self.head(tokens.mean(1))
        return logits


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(),
        nn.Linear(80, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip


@pytest.fixture(params=["convolutional", "tokens"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(3)
    return convolutional().eval() if request.param == "convolutional" else Tokens().eval()


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(7, 1, 8, 8, generator=generator), torch.rand(7, 1, 8, 8, generator=generator)


def first_layer(model: nn.Module) -> str:
    return match_layers(model, "auto", torch.zeros(1, 1, 8, 8))[0]


def test_what_is_overwritten_is_what_the_next_layers_see(model: nn.Module, pairs: tuple[Tensor, Tensor]) -> None:
    layer = first_layer(model)
    with ActivationProbe(model, layer) as probe:
        model(pairs[0])
    before = probe.outputs[layer]
    values = torch.full((1, 2, 1), 7.5)
    with Intervention(model, {layer: Overwriting(torch.tensor([1, 3]), values)}), probe:
        model(pairs[0])
    after = probe.outputs[layer]
    assert (after[:, [1, 3]] == 7.5).all()
    others = [m for m in range(before.shape[1]) if m not in (1, 3)]
    assert torch.equal(after[:, others], before[:, others])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_whole_layer_of_another_image_is_that_image_in_a_sequence(
    model: nn.Module, pairs: tuple[Tensor, Tensor], layout: torch.memory_format
) -> None:
    benign, adversarial = (images.to(memory_format=layout) for images in pairs)
    model = model.to(memory_format=layout)
    for layer in match_layers(model, "auto", benign):
        forwards = PairForwards(model, [layer], benign, adversarial)
        with ActivationProbe(model, layer) as probe, torch.no_grad():
            model(benign)
        everything = {layer: torch.arange(probe.outputs[layer].shape[1])}
        assert torch.allclose(forwards.ablated(everything), forwards.benign_logits, atol=1e-5)
        assert torch.allclose(forwards.patched(everything), forwards.adversarial_logits, atol=1e-5)
        nothing = {layer: torch.arange(0)}
        assert torch.equal(forwards.ablated(nothing), forwards.adversarial_logits)
        assert torch.equal(forwards.patched(nothing), forwards.benign_logits)


def test_zero_and_mean_are_what_a_masked_network_computes(pairs: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    body, head = nn.Linear(64, 6), nn.Linear(6, 3)
    model = nn.Sequential(nn.Flatten(), body, nn.ReLU(), head)
    forwards = PairForwards(model, ["1"], *pairs)
    neurons, means = torch.tensor([0, 4]), torch.arange(6.0)
    for replacement, values in (("zero", torch.zeros(6)), ("mean", means)):
        hidden = body(pairs[1].flatten(1)).detach()
        for m in neurons.tolist():
            hidden[:, m] = values[m]
        expected = head(torch.relu(hidden))
        assert torch.allclose(forwards.ablated({"1": neurons}, replacement, {"1": means}), expected, atol=1e-6)  # type: ignore[arg-type]


def test_neurons_needed_to_flip_are_found_by_trying_one_image_at_a_time(
    model: nn.Module, pairs: tuple[Tensor, Tensor]
) -> None:
    layer = first_layer(model)
    forwards = PairForwards(model, [layer], *pairs)
    with ActivationProbe(model, layer) as probe, torch.no_grad():
        model(pairs[0])
    order = torch.randperm(probe.outputs[layer].shape[1], generator=torch.Generator().manual_seed(0))
    counts = range(1, len(order) + 1)
    found = flipped_at(forwards, {layer: order}, counts)
    for image in range(len(pairs[0])):
        alone = PairForwards(model, [layer], pairs[0][image : image + 1], pairs[1][image : image + 1])
        before = alone.benign_logits.argmax()
        needed = [k for k in counts if alone.patched({layer: order[:k]}).argmax() != before]
        assert found[image] == (needed[0] if needed else 0)


def test_the_model_is_left_as_it_was_also_after_an_error(model: nn.Module, pairs: tuple[Tensor, Tensor]) -> None:
    model.train()
    layer = first_layer(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    forwards = PairForwards(model, [layer], *pairs)
    forwards.ablated({layer: torch.tensor([0])})
    with pytest.raises(InputError, match="replacements"):
        forwards.ablated({layer: torch.tensor([0])}, "median")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="means"):
        forwards.ablated({layer: torch.tensor([0])}, "mean")
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_several_layers_at_once_are_each_overwritten(pairs: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = convolutional().eval()
    with ActivationProbe(model, ["0", "2"]) as probe, torch.no_grad():
        model(pairs[0])
    chosen = {"0": torch.tensor([1]), "2": torch.tensor([0, 4])}
    wanted = take_neurons(probe.outputs, chosen)
    zeros = constant_neurons({"0": torch.zeros(4), "2": torch.zeros(5)}, chosen)
    with Intervention(model, wanted), probe, torch.no_grad():
        model(pairs[1])
    assert all(torch.equal(probe.outputs[layer][:, chosen[layer]], wanted[layer].values) for layer in chosen)
    with Intervention(model, zeros), probe, torch.no_grad():
        model(pairs[1])
    assert all((probe.outputs[layer][:, chosen[layer]] == 0).all() for layer in chosen)


@pytest.mark.parametrize("how", ["whole", "parts"])
def test_compiled_code_obeys(how: str) -> None:
    network, images = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), torch.rand(5, 4)
    overwriting = {"0": Overwriting(torch.tensor([1]), torch.full((1, 1, 1), 7.0))}
    with Intervention(network, overwriting):
        expected = network(images)
    if how == "parts":
        network[0].compile(backend="eager")
    compiled = torch.compile(network, backend="eager") if how == "whole" else network
    plain = compiled(images)
    with Intervention(compiled, overwriting):
        torch.testing.assert_close(compiled(images), expected)
    torch.testing.assert_close(compiled(images), plain)
    assert not torch.equal(plain, expected)


def test_a_layer_that_is_not_called_is_told() -> None:
    network = nn.Sequential(OrderedDict(used=nn.Linear(4, 3)))
    network.used.add_module("idle", nn.Linear(4, 3))
    overwriting = Overwriting(torch.tensor([1]), torch.zeros(1, 1, 1))
    with (
        pytest.raises(InputError, match=r"^layers: got 'used.idle'; the layer was not called"),
        Intervention(network, {"used": overwriting, "used.idle": overwriting}),
    ):
        network(torch.rand(2, 4))
