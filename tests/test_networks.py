"""What is found out about other people's networks changes nothing about them, and is right."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from distsens.attacks import Threat, attack_view, logits_of, pgd
from distsens.networks import as_written, in_own_type, keeping_buffers, laid_out, memory_format_of, unwrapped

_IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class _Views(nn.Module):
    """Flattens as tutorials do, wherever it is told to."""

    def __init__(self, channels: int = 3, *, eval_: bool = True, training: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(256, 10)
        self.views = {False: eval_, True: training}

    def forward(self, x: Tensor) -> Tensor:
        features = self.norm(self.conv(x)).relu()
        flat = features.view(-1, 256) if self.views[self.training] else features.flatten(1)
        logits: Tensor = self.linear(flat)
        return logits


class _ViewsBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004
        return x * 1.0

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        return gradient.view(-1).reshape(gradient.shape)


class _OwnBackward(_Views):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.second(_ViewsBackwards.apply(self.conv(x))).flatten(1))
        return logits


class _ReadsStrides(_Views):
    """Takes every other pixel of what it thinks lies row by row."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        logits: Tensor = self.linear(features.as_strided((len(x), 256), (256, 1)))
        return logits


class _Locked(_Views):
    """Cannot be copied, and so not be tried."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class _Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError(tuple(x.shape))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: _Views(eval_=False, training=False), torch.channels_last),
        (lambda: _Views(1, eval_=False, training=False), torch.channels_last),
        (lambda: nn.Sequential(nn.Dropout(0.5), nn.Conv2d(3, 4, 3), nn.Flatten()), torch.channels_last),
        (_Fails, torch.channels_last),
        (_Views, torch.contiguous_format),
        (lambda: _Views(1), torch.contiguous_format),
        (lambda: _Views(training=False), torch.contiguous_format),
        (lambda: _Views(eval_=False), torch.contiguous_format),
        (lambda: DataParallel(_Views()), torch.contiguous_format),
        (lambda: torch.compile(_Views(), backend="eager"), torch.contiguous_format),
        (_OwnBackward, torch.contiguous_format),
        (_ReadsStrides, torch.contiguous_format),
        (_Locked, torch.contiguous_format),
        (lambda: torch.jit.trace(_Views().eval(), _IMAGES), torch.contiguous_format),
    ],
)
def test_a_network_runs_channels_last_unless_it_cannot(
    build: Callable[[], nn.Module], expected: torch.memory_format
) -> None:
    network = build()
    channels = next((weight.shape[1] for weight in network.parameters() if weight.ndim == 4), 3)
    images = _IMAGES[:, :channels]
    generator = torch.get_rng_state()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    strides = [weight.stride() for weight in network.parameters()]
    modes = [module.training for module in network.modules()]
    with torch.inference_mode():
        assert memory_format_of(network, images) is expected
    assert memory_format_of(network, images) is expected
    assert torch.equal(torch.get_rng_state(), generator)
    torch.testing.assert_close(dict(network.state_dict()), state, rtol=0, atol=0)
    assert [weight.stride() for weight in network.parameters()] == strides
    assert [module.training for module in network.modules()] == modes
    assert not any(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_flattens_by_view_is_attacked_however_the_images_lie(channels: int, layout: torch.memory_format) -> None:
    network = _Views(channels).eval()
    images = _IMAGES[:, :channels].to(memory_format=layout)
    torch.testing.assert_close(
        logits_of(network, images), network(images.contiguous().clone(memory_format=torch.contiguous_format))
    )
    adversarial = pgd(network, images, torch.arange(5), Threat("linf", 0.1), steps=2, step_size=0.1)
    assert Threat("linf", 0.1).distance(images, adversarial).max() > 0.05


def test_a_trial_calls_no_hook() -> None:
    network = _Views()
    network.conv.register_forward_hook(lambda *_: pytest.fail("the hook was called"))
    memory_format_of(network, _IMAGES)


def test_weights_lie_as_they_run() -> None:
    assert laid_out(_Views(), (3, 8, 8)).conv.weight.is_contiguous()
    free = laid_out(_Views(eval_=False, training=False), (3, 8, 8))
    assert free.conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_take_the_type_of_the_weights(dtype: torch.dtype) -> None:
    network = _Views().eval().to(dtype)
    assert in_own_type(network, _IMAGES).dtype is dtype
    expected = network(_IMAGES.to(dtype)).float()
    torch.testing.assert_close(logits_of(network, _IMAGES), expected, rtol=0.02, atol=0.02)
    network.linear.float()
    assert in_own_type(network, _IMAGES).dtype is torch.float32


def test_wrappers_are_looked_through_in_any_order() -> None:
    network = _Views()
    assert unwrapped(DataParallel(torch.compile(network, backend="eager"))) is network
    assert unwrapped(torch.compile(DataParallel(network), backend="eager")) is network


def test_hooks_of_compiled_code_are_called_where_it_runs_as_written() -> None:
    network = _Views().eval()
    compiled = torch.compile(network, backend="eager")
    compiled(_IMAGES)
    called: list[int] = []
    network.conv.register_forward_hook(lambda *_: called.append(1))
    with as_written(compiled):
        compiled(_IMAGES)
    assert called == [1]


class _Counting(nn.Module):
    """Updates two buffers in any mode, one in place and one by a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))
        self.register_buffer("none", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.mean()
        return x.flatten(1)


class _KeptInTrainMode(_Views):
    def train(self, mode: bool = True) -> _KeptInTrainMode:
        super().train(mode)
        self.norm.train()
        return self


@pytest.mark.parametrize("build", [_Counting, _KeptInTrainMode])
def test_buffers_that_a_network_updates_in_eval_mode_are_as_they_were_after_an_attack(
    build: Callable[[], nn.Module],
) -> None:
    network = build().eval()
    held = dict(network.named_buffers())
    before = {name: buffer.clone() for name, buffer in held.items()}
    with attack_view(network) as logits:
        logits(_IMAGES)
        assert any(not torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    for name, buffer in network.named_buffers():
        assert buffer is held[name]
        assert torch.equal(buffer, before[name])


def test_buffers_are_as_they_were_after_an_error() -> None:
    network = _Counting()
    with pytest.raises(RuntimeError), keeping_buffers(network):
        network(_IMAGES).backward()
    assert network.calls == network.last == 0


def test_buffers_that_were_updated_in_training_mode_are_as_they_were_also_if_eval_mode_follows() -> None:
    network = _Views().eval()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with keeping_buffers(network):
        network.train()(_IMAGES)
        network.eval()
    torch.testing.assert_close(dict(network.named_buffers()), before, rtol=0, atol=0)
