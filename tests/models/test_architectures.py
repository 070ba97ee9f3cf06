from __future__ import annotations

import copy
import re
from collections import Counter
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from distsens.errors import InputError
from distsens.models import (
    MODELS,
    PixelModel,
    build,
    lenet5,
    load_state,
    preact_resnet18,
    state_of,
    state_to_bytes,
    torchvision_model,
    vit_tiny,
    wide_resnet,
)
from distsens.models.catalogue import Builder, _builder
from distsens.sensitivity import ActivationProbe, PairRows, Stabilizer, Stabilizing, match_layers, neuron_counts

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 16, 24), (1, 4, 4), (1, 15, 15), (1, 11, 33)]
FAMILIES = ["small_cnn", "lenet5", "resnet18", "preact_resnet18", "vgg11_bn"]
NAMES = [*FAMILIES, "vit_tiny", "wrn10_2", "torchvision:mobilenet_v3_small"]  # deeper ones are of the same blocks


@cache
def built(name: str) -> PixelModel:
    return build(name, shape=(3, 8, 8), classes=5, mean=(0.5,), std=(0.25,), seed=0)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_but_the_transformer_takes_images_of_every_size(name: str, shape: tuple[int, int, int]) -> None:
    network = MODELS[name](shape=shape, classes=7).eval()
    assert network(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 8, 8)], ids=str)
def test_a_transformer_takes_square_images_that_its_patches_fill(shape: tuple[int, int, int]) -> None:
    assert vit_tiny(shape=shape, classes=7).eval()(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("shape", [(3, 32, 24), (3, 30, 30)], ids=str)
@pytest.mark.parametrize(("name", "patch"), [("vit_tiny", 4), ("torchvision:vit_b_16", 16)])
def test_a_transformer_refuses_other_images(name: str, patch: int, shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=f"square images of a side that {patch} divides, not "):
        build(name, shape=shape, classes=10, mean=(0.5,), std=(0.25,), seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_each_layer_is_called_once_in_a_forward(name: str) -> None:
    network = built(name).network
    layers = match_layers(network, "auto", torch.zeros(1, 3, 8, 8))
    calls: Counter[str] = Counter()
    hooks = [
        network.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.update([path])) for path in layers
    ]
    network(torch.rand(2, 3, 8, 8))
    for hook in hooks:
        hook.remove()
    assert calls == Counter(layers)
    assert len(layers) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_changes_nothing_and_the_gradient_reaches_every_parameter_and_the_pixels(name: str) -> None:
    model = built(name).eval()
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    plain = model(images)
    logits = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, plain, rtol=1e-3, atol=1e-3)
    logits.logsumexp(1).sum().backward()
    assert images.grad is not None
    for gradient in (images.grad, *(parameter.grad for parameter in model.parameters())):
        assert gradient is not None
        assert gradient.isfinite().all()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_model_can_be_stabilized_with_the_distance_that_needs_its_inputs_kept(name: str) -> None:
    model = built(name).train()
    neurons = neuron_counts(model, "auto", torch.zeros(1, 3, 8, 8))
    stabilizer = Stabilizer(Stabilizing(distance="cosine"), neurons)
    read = partial(stabilizer.read, rows=PairRows(slice(0, 2), slice(2, 4)))
    for _ in range(2):  # the first reads sensitivities, the second has neurons to stabilize
        with ActivationProbe(model, "auto", read) as probe:
            model(torch.rand(4, 3, 8, 8))
        stabilizer.count(probe.outputs)
        term = stabilizer.term(probe.outputs)
        stabilizer.refresh()
    assert term is not None
    term.sum().backward()


def test_a_transformers_neurons_are_its_features() -> None:
    counts = neuron_counts(built("vit_tiny"), "auto", torch.zeros(1, 3, 8, 8))
    assert list(counts.values()) == [192, *[768, 192] * 12]


PUBLISHED: list[tuple[str, int, int]] = [
    # name, classes, parameters
    ("resnet18", 10, 11_173_962),
    ("resnet34", 10, 21_282_122),
    ("resnet50", 10, 23_520_842),
    ("preact_resnet18", 10, 11_172_170),  # 11_171_146 where the normalisation after the last block is left out
    ("vgg11_bn", 10, 9_231_114),
    ("vgg16_bn", 10, 14_728_266),
    ("wrn28_10", 10, 36_479_194),
    ("wrn34_10", 10, 46_160_474),
    ("wrn40_4", 10, 8_949_210),
    ("torchvision:resnet50", 1000, 25_557_032),
    ("torchvision:wide_resnet50_2", 1000, 68_883_240),
    ("convnext_tiny", 1000, 28_589_128),
]


@pytest.mark.parametrize(("name", "classes", "published"), PUBLISHED, ids=[name for name, *_ in PUBLISHED])
def test_the_number_of_parameters_is_the_published_one(name: str, classes: int, published: int) -> None:
    with torch.device("meta"):
        assert parameters(_builder(name, small_images=False)(shape=(3, 32, 32), classes=classes)) == published


@pytest.mark.parametrize(
    ("network", "published"),
    [
        (MODELS["small_cnn"](shape=(1, 28, 28), classes=10), 312_202),
        (lenet5(shape=(1, 32, 32), classes=10), 61_706),
        (lenet5(shape=(1, 28, 28), classes=10), 61_706),
    ],
    ids=["small_cnn", "lenet5 at 32", "lenet5 at 28"],
)
def test_the_number_of_parameters_for_digits_is_the_published_one(network: nn.Module, published: int) -> None:
    assert parameters(network) == published


def test_the_transformer_has_the_published_blocks() -> None:
    """ViT-Ti has 5,717,416 parameters at 224x224, patch 16 and 1000 classes: other patches, positions and classes."""
    with torch.device("meta"):
        network = vit_tiny(shape=(3, 32, 32), classes=10)
    patches = 192 * 3 * (16**2 - 4**2)
    positions = 192 * (14**2 - 8**2)
    classes = (192 + 1) * (1000 - 10)
    assert parameters(network) == 5_717_416 - patches - positions - classes


def test_the_small_cnn_is_not_padded_where_the_images_are_large_enough() -> None:
    sizes = {}
    network = MODELS["small_cnn"](shape=(1, 28, 28), classes=10)
    for name in ("conv1", "conv2", "conv3", "conv4", "fc1", "fc2", "fc3"):
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: sizes.update({name: tuple(output.shape[1:])})
        )
    network(torch.rand(1, 1, 28, 28))
    assert sizes == {
        "conv1": (32, 26, 26),
        "conv2": (32, 24, 24),
        "conv3": (64, 10, 10),
        "conv4": (64, 8, 8),
        "fc1": (200,),
        "fc2": (200,),
        "fc3": (10,),
    }


def test_the_resnet_keeps_the_resolution_in_its_stem_and_halves_it_three_times() -> None:
    sizes = {}
    network = MODELS["resnet18"](shape=(3, 32, 32), classes=10)
    for name in ("relu", "layer1", "layer2", "layer3", "layer4"):
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: sizes.update({name: tuple(output.shape[1:])})
        )
    network(torch.rand(2, 3, 32, 32))
    assert sizes == {
        "relu": (64, 32, 32),
        "layer1": (64, 32, 32),
        "layer2": (128, 16, 16),
        "layer3": (256, 8, 8),
        "layer4": (512, 4, 4),
    }


def test_pooling_rounds_up_in_vgg_so_that_the_features_of_28_pixels_are_not_empty() -> None:
    features = MODELS["vgg11_bn"](shape=(1, 28, 28), classes=10).get_submodule("features")
    assert features(torch.rand(2, 1, 28, 28)).shape == (2, 512, 1, 1)
    assert features(torch.rand(2, 1, 32, 32)).shape == (2, 512, 1, 1)


def preact_logits(network: nn.Module, images: Tensor, strides: list[int], blocks: int) -> Tensor:
    """Logits of a pre-activation ResNet in eval mode, from its state dict and the papers' figures alone."""
    state = network.state_dict()

    def normalised(features: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        scaled = (features - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return (scaled * weight[:, None, None] + bias[:, None, None]).clamp(min=0)

    features = F.conv2d(images, state["conv1.weight"], padding=1)
    for stage, stride_of_stage in enumerate(strides, start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", stride_of_stage if block == 0 else 1
            active = normalised(features, f"{name}.bn1")
            if f"{name}.shortcut.weight" in state:
                features = F.conv2d(active, state[f"{name}.shortcut.weight"], stride=stride)
            inner = F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = normalised(inner, f"{name}.bn2")
            features = features + F.conv2d(inner, state[f"{name}.conv2.weight"], padding=1)
    pooled = normalised(features, "bn").mean((2, 3))
    return pooled @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(
    ("builder", "strides", "blocks"),
    [(preact_resnet18, [1, 2, 2, 2], 2), (partial(wide_resnet, 16, 2), [1, 2, 2], 2)],
    ids=["preact_resnet18", "wrn16_2"],
)
def test_pre_activation_networks_compute_what_the_papers_draw(
    builder: Builder, strides: list[int], blocks: int
) -> None:
    network = builder(shape=(3, 12, 12), classes=4).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                values.uniform_(0.5, 1.5)
    images = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        expected = preact_logits(network, images, strides, blocks)
        torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-3)


def test_the_stages_of_a_wide_resnet_are_16_32_and_64_times_its_width() -> None:
    with torch.device("meta"):
        network = wide_resnet(16, 3, shape=(3, 32, 32), classes=10)
    stages = [network.get_submodule(f"layer{number}.0.conv1").out_channels for number in (1, 2, 3)]
    assert stages == [48, 96, 192]


@pytest.mark.parametrize("name", ["wrn27_10", "wrn4_1", "wrn6_2"])
def test_a_wide_resnet_has_a_depth_of_6n_plus_4(name: str) -> None:
    with pytest.raises(InputError, match="the depth must be 6n \\+ 4") as error:
        build(name, shape=(3, 32, 32), classes=10, mean=(0.5,), std=(0.25,), seed=0)
    assert error.value.value == name


# torchvision's networks. Their number of parameters but for the stem and the logits is torchvision's affair.


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v3_small"])  # with stochastic depth, with dropout
def test_no_layer_draws_noise(name: str) -> None:
    network = torchvision_model(name, shape=(3, 32, 32), classes=10).train()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images), network(images))


STEMS = [  # the first layers that see less than 32x32 with the stem that keeps the resolution
    ("resnet18", "layer2", 16),
    ("regnet_x_400mf", "trunk_output.block1", 16),
    ("densenet121", "features.transition1", 16),
    ("shufflenet_v2_x0_5", "stage2", 16),
    ("mobilenet_v2", "features.2", 16),
    ("mobilenet_v3_small", "features.1", 16),
    ("efficientnet_b0", "features.2", 16),
    ("mnasnet0_5", "layers.8", 16),
]


@pytest.mark.parametrize(("name", "layer", "side"), STEMS, ids=[name for name, *_ in STEMS])
def test_the_stem_for_small_images_keeps_the_resolution(name: str, layer: str, side: int) -> None:
    sides: dict[bool, list[int]] = {}
    for small in (False, True):
        network = torchvision_model(name, shape=(1, 32, 32), classes=10, small_images=small).eval()
        network.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, small=small: sides.update({small: list(output.shape[2:])})
        )
        with torch.no_grad():
            assert network(torch.rand(2, 1, 32, 32)).shape == (2, 10)
    assert sides[True] == [side, side]
    assert sides[False][0] < side


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "torchvision:vit_b_32"])
def test_a_network_without_such_a_stem_says_so(name: str) -> None:
    with pytest.raises(InputError, match="has no stem to replace; ResNet, RegNet") as error:
        build(name, shape=(3, 32, 32), classes=10, mean=(0.5,), std=(0.25,), seed=0, small_images=True)
    assert error.value.field == "model.small_images"


@pytest.mark.parametrize("name", ["resnet18", "wrn16_2", "small_cnn"])
def test_a_network_for_small_images_has_no_stem_to_replace(name: str) -> None:
    with pytest.raises(InputError, match=f"replaces the stem of torchvision's models; {name} is none"):
        build(name, shape=(3, 32, 32), classes=10, mean=(0.5,), std=(0.25,), seed=0, small_images=True)


@pytest.mark.parametrize("name", ["small_cnn", "lenet5"])
def test_the_nonlinearities_are_modules_between_the_layers(name: str) -> None:
    network = MODELS[name](shape=(1, 28, 28), classes=10)
    modules = list(network.children())
    layers = [module for module in modules if not isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.Flatten)]
    weights, activations = layers[::2], layers[1::2]
    assert all(isinstance(module, nn.Conv2d | nn.Linear) for module in weights)
    assert all(isinstance(module, nn.ReLU | nn.Tanh) for module in activations)
    assert isinstance(modules[-1], nn.Linear)


@pytest.mark.parametrize(("name", "side"), [("googlenet", 64), ("inception_v3", 80)])
def test_published_weights_with_auxiliary_heads_are_those_of_the_network_without(name: str, side: int) -> None:
    published = models.get_model(name, weights=None, num_classes=5, init_weights=False, transform_input=False).eval()
    state = {f"module.{key}": tensor for key, tensor in published.state_dict().items()}
    assert any("aux" in key.lower() for key in state)
    model = build(f"torchvision:{name}", shape=(3, side, side), classes=5, mean=(0.0,), std=(1.0,), seed=0)
    load_state(model, state, "net.pth")
    images = torch.rand(1, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), published(images))


def test_published_weights_of_older_layouts_are_those_of_todays_networks() -> None:
    densenet = models.densenet121(num_classes=5).state_dict()
    older = {re.sub(r"(norm|relu|conv)([12])\.(?=\w+$)", r"\1.\2.", key): tensor for key, tensor in densenet.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    vit = models.vit_b_32(image_size=32, num_classes=5).state_dict()
    linear = {key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): vit[key] for key in vit}
    for name, state, today in (("densenet121", older, densenet), ("vit_b_32", linear, vit)):
        model = build(f"torchvision:{name}", shape=(3, 32, 32), classes=5, mean=(0.0,), std=(1.0,), seed=0)
        load_state(model, state, "net.pth")
        assert all(torch.equal(tensor, today[key]) for key, tensor in model.network.state_dict().items())  # type: ignore[union-attr]


def test_a_network_that_wants_to_know_who_saved_it_is_loaded_from_a_file_that_does_not_say() -> None:
    first, second = (
        build("torchvision:mnasnet0_5", shape=(3, 32, 32), classes=5, mean=(0.0,), std=(1.0,), seed=seed)
        for seed in (0, 1)
    )
    load_state(second, state_of(state_to_bytes(first.state_dict()), "net.safetensors"), "net.safetensors")
    copied = copy.deepcopy(second)
    copied.load_state_dict(dict(first.state_dict()))
    for model in (second, copied):
        assert all(torch.equal(one, other) for one, other in zip(model.parameters(), first.parameters(), strict=True))
