from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import VisionTransformer, resnet18
from torchvision.models.convnext import LayerNorm2d

from distsens.errors import InputError
from distsens.sensitivity import ActivationProbe, PairSums, match_layers, neuron_counts, pair_sums, split_pairs


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.relu(self.norm(self.conv(x)))


class Nested(nn.Module):
    """Two blocks inside a module inside a module, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.ModuleDict({"stem": nn.Conv2d(1, 4, 3), "blocks": nn.Sequential(Block(4), Block(4))})
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        self.unused = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.network["blocks"](self.network["stem"](x)))


CALLED = ("network.stem", "network.blocks.0.conv", "network.blocks.1.conv", "head.2")


@pytest.fixture
def model() -> Nested:
    torch.manual_seed(0)
    return Nested().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def tiny_vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=3
    )


# Which layers the patterns mean.


def test_names_and_globs_reach_nested_modules_in_the_models_order_each_once(model: Nested) -> None:
    assert match_layers(model, ["head.2", "network.blocks.*.conv", "network.blocks.0.*"]) == (
        "network.blocks.0.conv",
        "network.blocks.0.norm",
        "network.blocks.0.relu",
        "network.blocks.1.conv",
        "head.2",
    )


def test_auto_takes_the_convolutions_and_linear_layers_of_a_forward_but_not_the_logits(
    model: Nested, images: Tensor
) -> None:
    assert match_layers(model, ["auto"], images) == CALLED
    with pytest.raises(InputError, match="'auto'; a forward decides which layers it means"):
        match_layers(model, ["auto"])


def test_one_pattern_may_be_given_without_a_list(model: Nested, images: Tensor) -> None:
    assert match_layers(model, "auto", images) == match_layers(model, ["auto"], images)
    assert match_layers(model, "head.2") == ("head.2",)


def test_auto_may_be_joined_with_names(model: Nested, images: Tensor) -> None:
    assert match_layers(model, ["unused", "auto", "head.4"], images) == (*CALLED, "head.4", "unused")


def test_auto_on_a_vision_transformer_skips_the_projections_inside_attention() -> None:
    layers = match_layers(tiny_vit(), ["auto"], torch.zeros(1, 3, 8, 8))
    assert layers == (
        "conv_proj",
        *(f"encoder.layers.encoder_layer_{block}.mlp.{linear}" for block in range(2) for linear in (0, 3)),
    )


def test_auto_works_on_resnet18_whose_shared_relus_are_called_twice() -> None:
    network = resnet18(weights=None).eval()
    x = torch.rand(1, 3, 32, 32)
    with ActivationProbe(network, ["auto"], read=lambda _, output: output.shape[1]) as probe, torch.no_grad():
        network(x)
    assert len(probe.outputs) == 20  # 17 convolutions and 3 on the shortcuts; fc gives the logits
    assert probe.outputs["layer4.0.downsample.0"] == 512
    assert "fc" not in probe.outputs
    with (
        pytest.raises(InputError, match=r"layers: got 'layer1\.0\.relu'; .*called twice"),
        ActivationProbe(network, ["layer1.0.relu"]),
        torch.no_grad(),
    ):
        network(x)
    assert hooks(network) == 0


@pytest.mark.parametrize("pattern", ["network.stemm", "conv*", ""])
def test_a_pattern_that_matches_nothing_is_named_with_examples_of_what_would(model: Nested, pattern: str) -> None:
    with pytest.raises(InputError) as caught:
        ActivationProbe(model, ["auto", pattern])
    assert repr(pattern) in str(caught.value)
    assert "network.stem, network.blocks.0.conv" in str(caught.value)


def test_auto_without_a_hidden_layer_says_which_layers_there_are() -> None:
    with pytest.raises(InputError, match=r"'auto'.*e\.g\. fc"):
        match_layers(nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(4, 2))), ["auto"], torch.zeros(1, 4))


# What is read.


def test_outputs_are_those_of_the_layers_themselves(model: Nested, images: Tensor) -> None:
    with ActivationProbe(model, CALLED) as probe:
        model(images)
    stem = model.network["stem"](images)
    first = model.network["blocks"][0]
    torch.testing.assert_close(probe.outputs["network.stem"], stem.flatten(2))
    torch.testing.assert_close(probe.outputs["network.blocks.0.conv"], first.conv(stem).flatten(2))
    hidden = model.head[:3](model.network["blocks"](stem))
    torch.testing.assert_close(probe.outputs["head.2"], hidden[:, :, None])
    assert tuple(probe.outputs) == CALLED


def test_gradients_flow_through_what_is_read(model: Nested, images: Tensor) -> None:
    images.requires_grad_()
    with ActivationProbe(model, ["network.stem"]) as probe:
        model(images)
    (gradient,) = torch.autograd.grad(probe.outputs["network.stem"].square().sum(), images)
    assert gradient.abs().sum() > 0


def test_features_of_tokens_are_the_neurons() -> None:
    network = tiny_vit().eval()
    name = "encoder.layers.encoder_layer_1.mlp.0"
    raw = []
    network.get_submodule(name).register_forward_hook(lambda *hooked: raw.append(hooked[-1]))
    with ActivationProbe(network, ["auto"]) as probe, torch.no_grad():
        network(torch.rand(3, 3, 8, 8))
    assert probe.outputs["conv_proj"].shape == (3, 8, 4)
    assert probe.outputs[name].shape == (3, 12, 5)  # 12 features, 4 patches and the class token
    for feature in range(12):
        assert torch.equal(probe.outputs[name][:, feature], raw[0][:, :, feature])


def test_torchs_encoder_layer_is_read_though_it_has_a_fused_path() -> None:
    encoder = nn.TransformerEncoderLayer(d_model=8, nhead=2, dim_feedforward=12, batch_first=True)
    network = nn.Sequential(encoder, nn.Flatten(), nn.Linear(40, 3)).eval()
    assert neuron_counts(network, ["auto"], torch.rand(2, 5, 8)) == {"0.linear1": 12, "0.linear2": 8}


@pytest.mark.parametrize(
    ("layer", "shape", "read"),
    [
        (nn.Conv1d(2, 4, 3), (3, 2, 9), (3, 4, 7)),
        (nn.Conv3d(1, 4, 1), (3, 1, 2, 2, 2), (3, 4, 8)),
        (nn.BatchNorm1d(4), (3, 4, 7), (3, 4, 7)),
        (nn.Linear(5, 4), (3, 2, 2, 5), (3, 4, 4)),
        (nn.LayerNorm(4), (3, 5, 6, 4), (3, 4, 30)),
        (LayerNorm2d(4), (3, 4, 5, 6), (3, 4, 30)),
        (nn.ReLU(), (3, 4), (3, 4, 1)),
        (nn.ReLU(), (3, 7, 4), (3, 4, 7)),
        (nn.ReLU(), (3, 4, 5, 6), (3, 4, 30)),
    ],
)
def test_every_kind_of_layer_is_read_as_neurons_and_positions(
    layer: nn.Module, shape: tuple[int, ...], read: tuple[int, ...]
) -> None:
    network = nn.Sequential(layer)
    with ActivationProbe(network, ["0"]) as probe:
        network(torch.rand(shape))
    assert probe.outputs["0"].shape == read


def test_channels_last_images_give_the_same_neurons(model: Nested) -> None:
    # Behind the stem there are four channels, so that the memory format matters.
    network = model.network["blocks"]
    x = torch.rand(2, 4, 5, 6)
    with ActivationProbe(network, ["*.conv"]) as probe, torch.no_grad():
        network(x)
        plain = probe.outputs
        network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for name, output in probe.outputs.items():
        assert output.shape == (2, 4, 30)
        torch.testing.assert_close(output, plain[name])


def test_an_activation_in_place_does_not_reach_what_was_read() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
    x = torch.rand(2, 1, 5, 5)
    with ActivationProbe(network, ["0"]) as probe, torch.no_grad():
        network(x)
    assert probe.outputs["0"].min() < 0
    assert torch.equal(probe.outputs["0"], network[0](x).flatten(2))


def test_halves_of_one_forward_are_the_pairs() -> None:
    benign, adversarial = split_pairs({"a": torch.arange(8.0).reshape(4, 2, 1)})
    assert benign["a"].flatten().tolist() == [0, 1, 2, 3]
    assert adversarial["a"].flatten().tolist() == [4, 5, 6, 7]


# When it is read.


def test_a_second_forward_starts_afresh(model: Nested, images: Tensor) -> None:
    with ActivationProbe(model, ["network.stem"]) as probe:
        model(images)
        model(images[:1])
    assert torch.equal(probe.outputs["network.stem"], model.network["stem"](images[:1]).flatten(2))


def test_a_probe_can_be_used_again_and_keeps_nothing_from_before(model: Nested, images: Tensor) -> None:
    probe = ActivationProbe(model, ["network.stem"])
    with probe:
        model(images)
    with pytest.raises(InputError, match="not called"), probe:
        pass
    with probe:
        model(images[:1])
    assert probe.outputs["network.stem"].shape[0] == 1


def test_a_layer_called_outside_of_the_models_forward_is_an_error(model: Nested, images: Tensor) -> None:
    with pytest.raises(InputError, match=r"network\.stem.*images are unknown"), ActivationProbe(model, "network.stem"):
        model.network["stem"](images)


def test_a_layer_called_twice_in_one_forward_is_an_error_that_says_so(images: Tensor) -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    network = nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU(), again=conv))
    with pytest.raises(InputError, match=r"layers: got 'conv'; .*called twice"), ActivationProbe(network, ["conv"]):
        network(images)
    assert hooks(network) == 0


def test_a_layer_that_is_not_called_is_an_error(model: Nested, images: Tensor) -> None:
    with pytest.raises(InputError, match=r"'unused'.*not called"), ActivationProbe(model, ["auto", "unused"]):
        model(images)
    assert hooks(model) == 0


def test_an_output_that_is_no_tensor_is_an_error() -> None:
    network = tiny_vit()
    name = "encoder.layers.encoder_layer_0.self_attention"
    with pytest.raises(InputError, match=r"self_attention.*tuple"), ActivationProbe(network, [name]):
        network(torch.rand(1, 3, 8, 8))
    assert hooks(network) == 0


def test_an_output_without_neurons_is_an_error() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Flatten(0))
    with pytest.raises(InputError, match=r"shape \(6,\)"), ActivationProbe(network, ["1"]):
        network(torch.rand(3, 2))


def test_no_hook_stays_behind_even_when_the_forward_fails(model: Nested, images: Tensor) -> None:
    with ActivationProbe(model, CALLED):
        model(images)
        assert hooks(model) == len(CALLED) + 1
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="channels"), ActivationProbe(model, CALLED):
        model(torch.rand(1, 5, 8, 8))
    assert hooks(model) == 0


@pytest.mark.parametrize("keep", [False, True])
def test_reading_sums_at_once_lets_the_activations_go(model: Nested, images: Tensor, keep: bool) -> None:
    storages = []
    model.network["stem"].register_forward_hook(
        lambda *hooked: storages.append(StorageWeakRef(hooked[-1].untyped_storage()))
    )

    def read(layer: str, output: Tensor) -> Tensor | PairSums:
        return output if keep else pair_sums(*output.chunk(2))

    with ActivationProbe(model, ["network.stem"], read=read) as probe, torch.no_grad():
        model(images)
    assert "network.stem" in probe.outputs
    assert storages[0].expired() is not keep


# Beside the probe.


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_wrapper_for_data_parallel_training_is_looked_through(model: Nested, images: Tensor) -> None:
    wrapped = DistributedDataParallel(model)
    assert match_layers(wrapped, ["auto", "head.?"], images) == match_layers(model, ["auto", "head.?"], images)
    with ActivationProbe(wrapped, CALLED) as probe:
        wrapped(images)
    assert tuple(probe.outputs) == CALLED
    assert hooks(wrapped) == 0


def test_neuron_counts_are_found_without_a_trace_in_the_model(model: Nested, images: Tensor) -> None:
    model.train()
    model.network["blocks"][1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}

    counts = neuron_counts(model, CALLED, images)

    assert counts == dict(zip(CALLED, (4, 4, 4, 6), strict=True))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks(model) == 0


def test_neuron_counts_restore_the_modes_when_the_forward_fails(model: Nested) -> None:
    model.train()
    with pytest.raises(RuntimeError, match="channels"):
        neuron_counts(model, CALLED, torch.rand(1, 5, 8, 8))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("kind", ["exported", "traced"])
@pytest.mark.parametrize("layers", ["auto", "0", "*"])
def test_a_program_is_refused_since_it_calls_no_layers(kind: str, layers: str) -> None:
    network, images = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), torch.rand(5, 4)
    program = torch.jit.trace(network, images) if kind == "traced" else torch.export.export(network, (images,)).module()
    with pytest.raises(InputError, match=r"^model: got 'an? (TorchScript|exported) program'; it calls no layers"):
        ActivationProbe(program, layers)


def test_a_compiled_network_is_read_by_its_own_names() -> None:
    network, images = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), torch.rand(5, 4)
    compiled = torch.compile(network, backend="eager")
    compiled(images)
    with ActivationProbe[Tensor](compiled, "0") as probe:
        compiled(images)
    assert torch.equal(probe.outputs["0"].squeeze(2), network[0](images))
