"""The attack view's cheaper forwards change nothing that anyone can see."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from distsens.attacks import GradientAttack, Threat, attack_view
from distsens.attacks.lean import lean_forwards


class _Block(nn.Module):
    """Two convolutions with batch norm beside a shortcut."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 4, 3, padding=1, **options)  # type: ignore[arg-type]
        self.bn2 = nn.BatchNorm2d(4, affine=False, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)


class _ReadTwice(_Block):
    """The first convolution's output goes round its batch norm, too."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv1(x)
        return torch.relu(self.bn2(self.conv2(self.bn1(features) + 0.1 * features)))


class _CalledTwice(_Block):
    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.bn1(self.conv1(x)) + torch.tanh(self.conv1(0.5 * x))
        return features[:, :4]


class _NotTraceable(_Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


class _Checkpointed(_Block):
    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = checkpoint(super().forward, x, use_reentrant=False)
        return outputs


class _KeptInTrainMode(_Block):
    def train(self, mode: bool = True) -> _KeptInTrainMode:
        super().train(mode)
        self.bn1.train()
        self.bn1.momentum = 0.0
        return self


class _ScaledConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


class _Memo(_Block):
    """Works out a tensor when it is called first, and keeps it."""

    mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.ones_like(x[:1])
        return super().forward(x * self.mask)


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """A classifier of 3 x 6 x 6 images around a block, whose batch norms have seen data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), build(), nn.Flatten(), nn.Linear(144, 5))
        for _ in range(3):
            network(2.0 * torch.rand(16, 3, 6, 6))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                nn.init.uniform_(module.weight, -2.0, 2.0)
                nn.init.uniform_(module.bias, -1.0, 1.0)
    return network.eval()


def _logits_and_gradients(forward: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    points = images.clone().requires_grad_()
    logits = forward(points)
    return logits, torch.autograd.grad(logits.square().sum(), points)[0]


def _assert_view_gives_the_networks_logits_and_gradients(network: nn.Module, images: Tensor) -> None:
    expected = _logits_and_gradients(network, images)
    with attack_view(network) as logits:
        torch.testing.assert_close(_logits_and_gradients(logits, images), expected, rtol=1e-4, atol=1e-5)


def _folded(network: nn.Module, images: Tensor) -> set[str]:
    """Names of the batch norms that merely hand on what they get."""
    forwards = lean_forwards(network, images, torch.channels_last, None)
    return {
        name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d) and module in forwards
    }


_BOTH = {"1.bn1", "1.bn2"}


@pytest.mark.parametrize(
    ("build", "folded"),
    [
        (_Block, _BOTH),
        (_Memo, _BOTH),
        (partial(_Block, groups=4, bias=False), _BOTH),
        (partial(_Block, padding_mode="reflect"), _BOTH),
        (_ReadTwice, {"1.bn2"}),
        (_KeptInTrainMode, {"1.bn2"}),
        (lambda: nn.Sequential(_ScaledConv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)), set()),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), set()),
        (_CalledTwice, set()),
        (_NotTraceable, set()),
        (_Checkpointed, set()),
    ],
    ids=lambda value: "" if isinstance(value, set) else getattr(value, "__name__", "block"),
)
def test_batch_norm_is_folded_where_it_alone_reads_a_convolution_and_logits_and_gradients_stay(
    build: Callable[[], nn.Module], folded: set[str], images: Tensor
) -> None:
    network = _seeded(build)
    assert _folded(network, images) == folded
    _assert_view_gives_the_networks_logits_and_gradients(network, images)


def test_a_folded_network_gives_the_same_adversarial_examples(images: Tensor) -> None:
    network, labels = _seeded(_Block), torch.arange(12) % 5
    attack = GradientAttack(Threat("l2", 0.5), steps=5, step_size=0.2)
    folded = attack(network, images, labels)
    network[0].register_forward_hook(lambda *_: None)  # Turns the folding off.
    torch.testing.assert_close(folded, attack(network, images, labels), rtol=1e-4, atol=1e-4)


def test_weights_and_statistics_of_a_later_training_step_count(images: Tensor) -> None:
    network = _seeded(_Block)
    _assert_view_gives_the_networks_logits_and_gradients(network, images)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    F.cross_entropy(network.train()(images), torch.arange(12) % 5).backward()
    optimizer.step()
    _assert_view_gives_the_networks_logits_and_gradients(network.eval(), images)


@pytest.mark.parametrize(
    "surgery",
    [
        lambda block: setattr(block, "bn1", nn.Identity()),
        lambda block: setattr(block, "conv1", nn.Conv2d(4, 8, 1)),
        lambda block: parametrizations.orthogonal(block.conv1),
        lambda block: parametrizations.spectral_norm(block.conv2),
        lambda block: torch.nn.utils.weight_norm(block.conv2),
    ],
    ids=["norm gone", "other convolution", "orthogonal", "spectral norm", "weight norm with a hook"],
)
def test_surgery_on_a_network_that_was_attacked_before_counts(
    surgery: Callable[[nn.Module], object], images: Tensor
) -> None:
    network = _seeded(_Block)
    _assert_view_gives_the_networks_logits_and_gradients(network, images)
    surgery(network[1])
    _assert_view_gives_the_networks_logits_and_gradients(network.eval(), images)


def test_hooks_inside_a_view_see_what_the_layers_really_give(images: Tensor) -> None:
    network = _seeded(_Block)
    expected = network[1].conv1(network[0](images))
    seen: list[Tensor] = []
    with attack_view(network) as logits:
        logits(images)
        handle = network[1].conv1.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        logits(images)
        handle.remove()
        network[1].bn1.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        logits(images)
    for output in seen:
        torch.testing.assert_close(output, expected)
    assert len(seen) == 2


def test_a_global_hook_sees_what_the_layers_really_give(images: Tensor) -> None:
    network = _seeded(_Block)
    expected = network[1].conv1(network[0](images))
    seen: dict[nn.Module, Tensor] = {}
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _inputs, output: seen.update({module: output})
    )
    try:
        with attack_view(network) as logits:
            logits(images)
    finally:
        handle.remove()
    torch.testing.assert_close(seen[network[1].conv1], expected)


def test_layers_have_their_own_forward_again_after_every_call_also_a_failing_one(images: Tensor) -> None:
    network = _seeded(_Block)
    expected = network(images)
    with attack_view(network, precision=torch.bfloat16) as logits:
        logits(images)
        assert torch.equal(network(images), expected)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            logits(images[:, :, :3])  # Too small for the linear layer.
        assert torch.equal(network(images), expected)
    assert not any("forward" in vars(module) for module in network.modules())


def test_weights_in_low_precision_give_exactly_the_logits_of_autocast(images: Tensor, smooth: nn.Module) -> None:
    channels_last = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = smooth(channels_last).float()
    with attack_view(smooth, precision=torch.bfloat16) as logits:
        assert torch.equal(logits(images), expected)


@pytest.mark.parametrize("build", [_Block, _Checkpointed, _NotTraceable, _CalledTwice])
def test_low_precision_is_as_close_to_float32_as_autocast_is(build: Callable[[], nn.Module], images: Tensor) -> None:
    network = _seeded(build)
    expected = _logits_and_gradients(network, images)

    def autocast(points: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network(points).float()

    allowed = _logits_and_gradients(autocast, images)
    with attack_view(network, precision=torch.bfloat16) as logits:
        found = _logits_and_gradients(logits, images)
    for value, theirs, exact in zip(found, allowed, expected, strict=True):
        assert (value - exact).norm() < 1.1 * (theirs - exact).norm()
        assert (value - exact).norm() < 0.1 * exact.norm()


def test_weights_are_cast_once_and_not_in_every_forward(images: Tensor) -> None:
    network = _seeded(_Block)
    weights = {tuple(p.shape) for p in network.parameters()}
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with attack_view(network, precision=torch.bfloat16) as logits:
        logits(images)  # The first forward is compared with the plain one.
        with torch.profiler.profile(record_shapes=True, activities=cpu) as profile:
            logits(images)
    casts = {tuple(event.input_shapes[0]) for event in profile.events() if event.name == "aten::_to_copy"}
    norms = [event for event in profile.events() if event.name == "aten::batch_norm"]
    assert not casts & weights
    assert casts  # The images are.
    assert not norms


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_convolutions_run_channels_last_however_the_network_holds_its_weights(
    precision: torch.dtype | None, images: Tensor, smooth: nn.Module
) -> None:
    held = [p.stride() for p in smooth.parameters()]
    forwards = lean_forwards(smooth, images, torch.channels_last, precision)
    assert len(forwards) == 3
    for forward in forwards.values():
        weight = forward.__self__.weight  # type: ignore[attr-defined]
        assert weight.ndim == 2 or weight.is_contiguous(memory_format=torch.channels_last)
    assert [p.stride() for p in smooth.parameters()] == held
    _assert_view_gives_the_networks_logits_and_gradients(smooth, images)


def test_views_of_other_precision_can_be_nested(images: Tensor) -> None:
    network = _seeded(_Block)
    exact = network(images)
    with attack_view(network, precision=torch.bfloat16) as low, attack_view(network) as full:
        torch.testing.assert_close(full(images), exact, rtol=1e-4, atol=1e-5)
        assert not torch.equal(low(images), full(images))
        torch.testing.assert_close(low(images), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("part", ["whole", "block"])
def test_compiled_code_is_left_as_it_is(part: str, images: Tensor) -> None:
    network = _seeded(_Block)
    expected = _logits_and_gradients(network, images)
    if part == "whole":
        network = torch.compile(network, backend="aot_eager")
    else:
        network[1].compile(backend="aot_eager")
    assert not lean_forwards(network, images, torch.channels_last, torch.bfloat16)
    with attack_view(network) as logits:
        torch.testing.assert_close(_logits_and_gradients(logits, images), expected, rtol=1e-4, atol=1e-5)


def test_a_subclass_of_a_layer_runs_its_own_code() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), _ScaledConv2d(3, 3, 1))
    forwards = lean_forwards(network, torch.rand(2, 3, 4, 4), torch.channels_last, torch.bfloat16)
    assert set(forwards) == {network[0]}


def test_what_a_forward_keeps_of_its_first_call_is_real(images: Tensor) -> None:
    network = _seeded(_Memo)
    network[1].mask = None
    with attack_view(network) as logits:
        logits(images)
    assert type(network[1].mask) is Tensor


def test_a_network_that_was_attacked_can_be_forgotten(images: Tensor) -> None:
    network = _seeded(_Block)
    forgotten = weakref.ref(network)
    _assert_view_gives_the_networks_logits_and_gradients(network, images)
    del network
    gc.collect()
    assert forgotten() is None


class _TwoNorms(nn.Module):
    """A flag, as of AdvProp, decides which batch norm is read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.adv = 0

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.norms[self.adv](self.conv(x))
        return features


class _Slim(_TwoNorms):
    """One norm, which some forwards leave out."""

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv(x)
        return self.norms[0](features) if self.adv == 0 else features  # type: ignore[no-any-return]


class _Keeps(_Block):
    """What the convolutions give is kept on the network, bare or in a list, for whoever wants it later."""

    kept: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.conv1(x)
        self.others = [self.conv2(torch.relu(self.bn1(self.kept)))]
        return torch.relu(self.bn2(self.others[0]) + x)


class _Offset(_Block):
    """Once there are offsets it takes as many images as there are offsets."""

    offset: float | Tensor = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.offset)


@pytest.mark.parametrize("build", [_TwoNorms, _Slim])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_flag_that_leads_the_forward_elsewhere_counts_in_every_view(
    build: Callable[[], nn.Module], precision: torch.dtype | None, images: Tensor
) -> None:
    network = _seeded(build)
    nn.init.uniform_(network[1].norms[1].weight, 2.0, 3.0)
    for flag in (0, 1, 0, 1):
        network[1].adv = flag
        tolerance = 0.1 if precision else 1e-4
        with attack_view(network, precision=precision) as logits:
            torch.testing.assert_close(logits(images), network(images), rtol=tolerance, atol=tolerance)


def test_what_a_forward_keeps_for_later_is_what_the_layer_gives(images: Tensor) -> None:
    network = _seeded(_Keeps)
    network[1].kept, network[1].others = torch.empty(0), []
    with attack_view(network) as logits, torch.no_grad():
        logits(images)
        torch.testing.assert_close(network[1].kept, network[1].conv1(network[0](images)))
    assert _folded(network, images) == set()


def test_a_network_that_takes_no_fewer_images_is_attacked_unfolded(images: Tensor) -> None:
    network = _seeded(_Offset)
    assert _folded(network, images) == _BOTH
    network[1].offset = torch.rand(len(images), 1, 1, 1)
    _assert_view_gives_the_networks_logits_and_gradients(network, images)
    assert _folded(network, images) == set()
