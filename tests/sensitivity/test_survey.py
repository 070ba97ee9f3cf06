from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import SqueezeNet, VisionTransformer
from torchvision.models.googlenet import GoogLeNet
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from distsens.errors import InputError
from distsens.sensitivity import (
    ActivationProbe,
    Intervention,
    Overwriting,
    PairForwards,
    PairRows,
    SensitivityMeter,
    Stabilizer,
    Stabilizing,
    StatisticsMeter,
    contributions,
    match_layers,
    neuron_counts,
    split_pairs,
)
from distsens.sensitivity.survey import known_survey, survey
from tests.sensitivity.layouts import Flattened, Mixing, Plain, SequenceFirst, Views, Windows

READ: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "windows": (Windows, {"stem": 1, "qkv": 4, "proj": 4, "silent": 4}),
    "flattened": (Flattened, {"patches": 4, "positions": 64}),
    "plain": (Plain, {"conv": 1, "tokens": 1, "body": 1}),
    "batch of one row": (partial(nn.Sequential, nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 5)), {"1": 1}),
}
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "views": (Views, "body"),
    "sequence first": (SequenceFirst, "encoder.layers.0.linear1"),
    **{f"{t} tokens first": (partial(SequenceFirst, t), "encoder.layers.0.linear1") for t in (1, 2, 3, 6, 12)},
    "mixing": (Mixing, "body"),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    benign = torch.rand(4, 3, 8, 8)
    return benign, (benign + 0.1 * torch.rand(4, 3, 8, 8)).clamp(0.0, 1.0)


def by_image(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What a layer says of images shown one by one: (N, neurons, positions), neurons last but in convolutions."""
    outputs: list[Tensor] = []
    module = model.get_submodule(layer)
    handle = module.register_forward_hook(lambda *hooked: outputs.append(hooked[-1].detach()))
    for image in images:
        model(image[None])
    handle.remove()
    axis = 1 if isinstance(module, nn.Conv2d) else -1
    return torch.stack([one.movedim(axis, 0).flatten(1) for one in outputs])


# Where images are.


@pytest.mark.parametrize("name", READ)
def test_rows_of_one_image_become_positions(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    build, rows = READ[name]
    model = build().eval()
    found = survey(model, pairs[0][:1])
    assert {layer: found.rows[layer] for layer in found.hidden} == rows
    with ActivationProbe(model, "auto") as probe, torch.no_grad():
        model(pairs[0])
    assert list(probe.outputs) == list(rows)
    if name != "plain":  # its norm takes statistics from the batch
        for layer, outputs in probe.outputs.items():
            expected = by_image(model, layer, pairs[0])
            assert outputs.shape == expected.shape
            torch.testing.assert_close(outputs.sort(2).values, expected.sort(2).values)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("images", [1, 4, 12])
def test_what_holds_the_images_elsewhere_is_refused_by_name(name: str, images: int) -> None:
    build, layer = REFUSED[name]
    model, x = build().eval(), torch.rand(images, 3, 8, 8)
    for layers in ("auto", layer):
        with pytest.raises(InputError, match=rf"'{layer}'; the first dimension of its output is not the images"):
            neuron_counts(model, layers, x)
        with (
            pytest.raises(InputError, match=layer),
            ActivationProbe(model, layers),
        ):
            model(x)
    with (
        pytest.raises(InputError, match=layer),
        Intervention(model, {layer: Overwriting(torch.tensor([0]), x[:1, :1, 0])}),
    ):
        model(x)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_auto_leaves_out_what_cannot_be_read_only_where_that_is_asked_for() -> None:
    images = torch.zeros(1, 3, 8, 8)
    assert match_layers(SequenceFirst(), "auto", images, readable=True) == ("embed",)
    assert match_layers(Views(), "auto", images, readable=True) == ()


def test_the_issues_example_has_its_true_sensitivity() -> None:
    class Issue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            n = len(x)
            x = self.layer(x.reshape(n, 3, 4, 16).permute(0, 2, 3, 1).reshape(4 * n, 16, 3))
            logits: Tensor = self.head(x.reshape(n, 64, 5).mean(1))
            return logits

    model, x = Issue(), torch.rand(6, 3, 8, 8)
    twins = x + 0.1 * torch.rand(6, 3, 8, 8)
    meter, probe = SensitivityMeter(), ActivationProbe(model, "auto")
    with probe, torch.no_grad():
        model(torch.cat([x, twins]))
    meter.update(*split_pairs(probe.outputs))
    change = model.layer((x - twins).flatten(2).transpose(1, 2)) - model.layer.bias
    torch.testing.assert_close(meter.compute()["layer"].absolute.float(), change.abs().mean((0, 1)).detach())


def vit() -> nn.Module:
    return VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=3
    )


def swin(**kinds: object) -> nn.Module:
    return SwinTransformer([2, 2], 8, [2, 2], [2, 2], [2, 2], num_classes=3, **kinds)  # type: ignore[arg-type]


EQUAL = {
    **{name: build for name, (build, _) in READ.items()},
    "vit": vit,
    "swin": swin,
    "swin v2": partial(swin, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_pairs_differ_by_exactly_nothing_everywhere(name: str) -> None:
    model, x = EQUAL[name]().eval(), torch.rand(3, 3, 8, 8)
    neurons = neuron_counts(model, "auto", x)
    stabilizer = Stabilizer(Stabilizing(ratio=1.0, pairs=1.0), neurons)
    rows = PairRows(slice(0, 3), slice(3, 6))
    for _ in range(2):
        with ActivationProbe(model, "auto", lambda *output: stabilizer.read(*output, rows)) as reading:
            model(torch.cat([x, x]))
        stabilizer.count(reading.outputs)
        term = stabilizer.term(reading.outputs)
        stabilizer.refresh()
    assert term is not None
    assert not term.any()
    assert not any(values.any() for values in stabilizer.sensitivity().values())
    with ActivationProbe(model, "auto") as probe, torch.no_grad():
        model(torch.cat([x, x]))
    meter = StatisticsMeter()
    meter.update(*split_pairs(probe.outputs), torch.zeros(3, dtype=torch.int64))
    for values in meter.compute().values():
        assert not values.absolute.any()
        assert not values.absolute_error.any()
    forwards = PairForwards(model, list(neurons), x, x)
    assert torch.equal(forwards.patched({layer: torch.arange(1) for layer in neurons}), forwards.benign_logits)


@pytest.mark.parametrize("name", ["windows", "flattened"])
def test_interventions_reach_every_row_of_an_image(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    build, rows = READ[name]
    model = build().eval()
    x, twins = pairs
    for layer in list(rows)[1:3]:  # all that the logits depend on passes through each
        neurons = {layer: torch.arange(neuron_counts(model, layer, x)[layer])}
        forwards = PairForwards(model, [layer], x, twins)
        torch.testing.assert_close(forwards.patched(neurons), forwards.adversarial_logits)
        torch.testing.assert_close(forwards.ablated(neurons), forwards.benign_logits)
        found = contributions(model, layer, x, twins, torch.zeros(4, dtype=torch.int64), steps=64)
        assert found.neurons.shape == (4, len(neurons[layer]))
        assert found.gap < 0.01
        # Of two images, the twin's value in one neuron of one alone: as if each had been alone.
        one = {layer: torch.tensor([1])}
        alone = [PairForwards(model, [layer], x[i : i + 1], twins[i : i + 1]).patched(one) for i in range(4)]
        torch.testing.assert_close(forwards.patched(one), torch.cat(alone))


# Which layers are hidden.


class Registered(nn.Module):
    """Layers in the order given, called as ``run`` says."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Cosine(nn.Module):
    """A head that is no layer of torch's."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(classes, features))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) @ F.normalize(self.weight, dim=1).T


class Distances(Cosine):
    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None] - self.weight).square().sum(2)


def conv(channels: int = 4, inputs: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, channels, 3, padding=1)


def pooled(x: Tensor) -> Tensor:
    return x.relu().mean((2, 3))


def exits(net: nn.Module, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    hidden = net.body(x)
    unused = net.aux(pooled(hidden))
    logits = net.head(pooled(hidden))
    return (logits, unused) if net.training else logits


HIDDEN: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "the head first": (
        lambda: Registered(lambda net, x: net.head(pooled(net.body(x))), head=nn.Linear(4, 5), body=conv()),
        ("body",),
    ),
    "a hidden layer last, its width that of the logits": (
        lambda: Registered(
            lambda net, x: net.head(net.last(pooled(net.body(x)))),
            head=nn.Linear(5, 5), body=conv(), last=nn.Linear(4, 5),
        ),
        ("body", "last"),
    ),
    "layers in another order than they are called": (
        lambda: Registered(
            lambda net, x: net.head(pooled(net.first(net.zeroth(x)))),
            first=conv(4, 6), zeroth=conv(6), head=nn.Linear(4, 5),
        ),
        ("zeroth", "first"),
    ),
    "a convolutional head": (
        lambda: nn.Sequential(conv(), nn.ReLU(), conv(5, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        ("0",),
    ),
    "a convolutional head, normalised": (
        lambda: nn.Sequential(
            conv(), nn.ReLU(), conv(5, 4), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten()
        ),
        ("0",),
    ),
    "a head of pieces": (
        lambda: Registered(
            lambda net, x: net.head(pooled(net.body(x))).unflatten(1, (5, 2)).amax(2),
            body=conv(), head=nn.Linear(4, 10),
        ),
        ("body",),
    ),
    "probabilities": (
        lambda: Registered(
            lambda net, x: net.head(pooled(net.body(x))).log_softmax(1), body=conv(), head=nn.Linear(4, 5)
        ),
        ("body",),
    ),
    "two heads": (
        lambda: Registered(
            lambda net, x: (net.one(pooled(net.body(x))) + net.two(x.mean((2, 3)))) / 2,
            body=conv(), one=nn.Linear(4, 5), two=nn.Linear(3, 5),
        ),
        ("body",),
    ),
    "a head of no layer": (
        lambda: nn.Sequential(conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), Cosine(5, 5)),
        ("0", "4"),
    ),
    "a head of distances": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), Distances(5, 5)), ("1",)),
    "an auxiliary head without use": (
        lambda: Registered(exits, body=conv(), aux=nn.Linear(4, 5), head=nn.Linear(4, 5)),
        ("body",),
    ),
    "auxiliary logits": (
        lambda: Registered(
            lambda net, x: (net.head(pooled(net.body(x))), net.aux(x.mean((2, 3)))),  # type: ignore[arg-type, return-value]
            body=conv(), aux=nn.Linear(3, 5), head=nn.Linear(4, 5),
        ),
        ("body",),
    ),
    "weights used twice": (
        lambda: Registered(
            lambda net, x: net.head(pooled(net.again(net.again(net.body(x)).relu()))),
            body=conv(), again=conv(4, 4), head=nn.Linear(4, 5),
        ),
        ("body",),
    ),
    "a branch that starts at zero": (
        lambda: Registered(
            lambda net, x: net.head(pooled(net.body(x) + net.scale(net.branch(x)))),
            body=conv(), branch=conv(), scale=nn.Conv2d(4, 4, 1, bias=False), head=nn.Linear(4, 5),
        ),
        ("body", "branch", "scale"),
    ),
    "behind a detour without gradient": (
        lambda: Registered(
            lambda net, x: net.head(pooled(net.body(x).detach())), body=conv(), unused=conv(), head=nn.Linear(4, 5)
        ),
        ("body",),
    ),
    "no gradient at all": (
        lambda: Registered(
            lambda net, x: net.head(pooled(net.body(x))).detach(), head=nn.Linear(4, 5), body=conv()
        ),
        ("body",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_auto_means_what_is_called_once_and_whose_output_is_not_the_logits(name: str) -> None:
    build, hidden = HIDDEN[name]
    model = build()
    if name == "a branch that starts at zero":
        nn.init.zeros_(model.get_submodule("scale").weight)
    for parameter in list(model.parameters())[::2]:  # weights that are frozen are weights still
        parameter.requires_grad_(False)
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    assert match_layers(model, "auto", torch.zeros(1, 3, 8, 8)) == hidden
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable


def test_published_networks_lose_their_heads_alone() -> None:
    squeezed = SqueezeNet("1_1", num_classes=3)
    weighted = [name for name, module in squeezed.named_modules() if isinstance(module, nn.Conv2d)]
    assert match_layers(squeezed, "auto", torch.zeros(1, 3, 32, 32)) == tuple(weighted[:-1])
    with_aux = GoogLeNet(num_classes=3, aux_logits=True, init_weights=False)
    layers = match_layers(with_aux, "auto", torch.zeros(1, 3, 32, 32))
    assert len(layers) == 57
    assert not any("aux" in layer or layer == "fc" for layer in layers)


# What a survey leaves behind: nothing.


def test_a_network_its_hooks_and_the_generators_notice_nothing() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(192, 6), nn.Linear(6, 5)
            self.norm = nn.BatchNorm1d(6)
            self.register_buffer("forwards", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.forwards += 1
            x = F.dropout(self.norm(self.body(x.flatten(1))), training=True)
            logits: Tensor = self.head(x + torch.randn_like(x))
            return logits

    model = Noisy().train()
    model.body.eval()
    called: list[object] = []
    model.body.register_forward_hook(lambda *_: called.append("hook"))
    model.register_forward_pre_hook(lambda *_: called.append("pre-hook"))
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert survey(model, torch.zeros(1, 3, 8, 8)).hidden == ("body",)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not called
    assert (model.training, model.body.training, model.norm.training) == (True, False, True)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(model.body._forward_hooks) == len(model._forward_pre_hooks) == 1


def test_it_is_made_once_for_a_shape_unless_other_layers_are_asked_for() -> None:
    def run(net: nn.Module, x: Tensor) -> Tensor:
        calls.append(len(x))
        return net.head(pooled(net.second(x) if net.switched else net.first(x)))

    calls: list[int] = []
    model = Registered(run, first=conv(), second=conv(), head=nn.Linear(4, 5))
    model.switched = False
    for _ in range(2):
        with ActivationProbe(model, "first"):
            model(torch.rand(5, 3, 8, 8))
    assert calls == [3, 3, 5, 5]
    model.switched = True
    with ActivationProbe(model, "second") as probe:
        model(torch.rand(5, 3, 8, 8))
    assert list(probe.outputs) == ["second"]
    with ActivationProbe(model, "auto") as probe:
        model(torch.rand(5, 3, 4, 4))
    assert list(probe.outputs) == ["second"]


def test_a_network_for_so_many_images_is_asked_with_as_many() -> None:
    model = Registered(
        lambda net, x: net.head(net.body(x.reshape(7, -1)).relu()), body=nn.Linear(192, 6), head=nn.Linear(6, 5)
    )
    assert known_survey(model, torch.rand(7, 3, 8, 8), ["body"]).rows["body"] == 1
    with pytest.raises(RuntimeError, match="shape"):
        survey(model, torch.rand(2, 3, 8, 8))


def test_numbers_instead_of_pixels_are_images_too() -> None:
    model = nn.Sequential(
        OrderedDict(embed=nn.Embedding(9, 4), flat=nn.Flatten(), body=nn.Linear(24, 5), head=nn.Linear(5, 3))
    )
    words = torch.arange(12).reshape(2, 6) % 9
    assert neuron_counts(model, ["auto", "embed"], words) == {"embed": 4, "body": 5}
