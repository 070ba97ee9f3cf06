from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DataParallel, DistributedDataParallel

from distsens.attacks import AttackName, GradientAttack, Threat, attack_named, attack_view, pgd

_ATTACK = GradientAttack(Threat("linf", 0.1), steps=3, step_size=0.05, restarts=2)
_ATTACKS = [
    pytest.param(_ATTACK, id="restarts"),
    pytest.param(GradientAttack(Threat("l2", 0.5), steps=3, step_size=0.2), id="l2"),
    pytest.param(GradientAttack(Threat("l1", 3.0), steps=3, step_size=1.0), id="l1"),
    *(pytest.param(attack_named(name, Threat("linf", 0.1), steps=3), id=name) for name in get_args(AttackName)),
]


class _Noisy(nn.Module):
    """Draws from the global generator in either mode, as a randomised defence does."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn_like(x)


def _network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.5),
            _Noisy(),
            nn.Conv2d(6, 6, 3),
            nn.BatchNorm2d(6),
            nn.Flatten(),
            nn.Linear(24, 5),
        )


def _fine_tuned(images: Tensor, labels: Tensor) -> nn.Sequential:
    """A network in the middle of a fine-tuning: some layers frozen, some in eval mode, some gradients there."""
    network = _network()
    network[0].weight.requires_grad_(False)
    network[6].requires_grad_(False)
    network[1].eval()
    network[3].eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        F.cross_entropy(network(images), labels).backward()
    network[8].bias.grad = None
    return network


@pytest.fixture
def mixed(images: Tensor, labels: Tensor) -> nn.Sequential:
    return _fine_tuned(images, labels)


def _state(network: nn.Module) -> dict[str, object]:
    """Everything that an attack must leave alone."""
    return {
        "parameters": {name: p.detach().clone() for name, p in network.named_parameters()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in network.named_parameters()},
        "buffers": {name: b.clone() for name, b in network.named_buffers()},
        "training": {name: module.training for name, module in network.named_modules()},
        "global generator": torch.get_rng_state(),
        "modes": {
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
        },
    }


_assert_same = partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.mark.parametrize("attack", _ATTACKS)
def test_after_an_attack_the_model_and_the_global_generator_are_as_they_were(
    attack: GradientAttack, mixed: nn.Module, images: Tensor, labels: Tensor
) -> None:
    before = _state(mixed)
    adversarial = attack(mixed, images, labels)
    _assert_same(_state(mixed), before)
    assert not torch.equal(adversarial, images)


@pytest.mark.parametrize("all_training", [True, False])
def test_a_network_in_train_or_eval_mode_is_left_so(all_training: bool, images: Tensor, labels: Tensor) -> None:
    network = _network().train(all_training)
    before = _state(network)
    _ATTACK(network, images, labels)
    _assert_same(_state(network), before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_the_loss_leaves_everything_as_it_was(
    error: type[BaseException], mixed: nn.Module, images: Tensor, labels: Tensor
) -> None:
    calls = []

    def failing_loss(logits: Tensor, targets: Tensor) -> Tensor:
        calls.append(logits)
        if len(calls) == 2:
            raise error("in the middle of the attack")
        return F.cross_entropy(logits, targets, reduction="none")

    before = _state(mixed)
    with pytest.raises(error, match="in the middle of the attack"):
        _ATTACK(mixed, images, labels, loss=failing_loss)
    _assert_same(_state(mixed), before)


def test_an_exception_in_the_network_leaves_everything_as_it_was(
    mixed: nn.Sequential, images: Tensor, labels: Tensor
) -> None:
    mixed.append(nn.Linear(7, 5))  # Fails on the five logits, after the noise has moved the global generator.
    before = _state(mixed)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        _ATTACK(mixed, images, labels)
    _assert_same(_state(mixed), before)


def test_inside_the_view_parameters_are_frozen_modules_evaluate_and_gradients_reach_the_image(
    mixed: nn.Module, images: Tensor
) -> None:
    points = images.clone().requires_grad_()
    with torch.no_grad(), attack_view(mixed) as logits:
        assert not any(p.requires_grad for p in mixed.parameters())
        assert not any(module.training for module in mixed.modules())
        (gradients,) = torch.autograd.grad(logits(points).sum(), points)
    assert gradients.abs().sum() > 0


def test_views_can_be_nested(mixed: nn.Module, images: Tensor) -> None:
    before = _state(mixed)
    with attack_view(mixed), attack_view(mixed) as logits:
        logits(images)
    _assert_same(_state(mixed), before)


def test_logits_are_those_of_the_network_in_eval_mode(images: Tensor, smooth: nn.Module) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), smooth).train()
    with attack_view(network) as logits:
        seen = logits(images)
    torch.testing.assert_close(seen, network.eval()(images))


def _train_step(network: nn.Module, images: Tensor, labels: Tensor, between: Callable[[], object]) -> dict[str, object]:
    """State after a step of SGD with ``between`` called before the forward and before the backward pass."""
    torch.manual_seed(11)
    between()
    loss = F.cross_entropy(network(images), labels)
    between()
    loss.backward()
    torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1, momentum=0.9).step()
    return _state(network)


@pytest.mark.parametrize("attack", _ATTACKS)
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_training_step_is_the_same_with_attacks_before_and_inside_it(
    attack: GradientAttack, precision: torch.dtype | None, autocast: bool, images: Tensor, labels: Tensor
) -> None:
    attacked, plain = (_fine_tuned(images, labels) for _ in range(2))
    attack = replace(attack, precision=precision)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected = _train_step(plain, images, labels, lambda: None)
        _assert_same(_train_step(attacked, images, labels, lambda: attack(attacked, images, labels)), expected)


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.inference_mode,
        partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    ],
    ids=["no_grad", "inference_mode", "autocast"],
)
@pytest.mark.parametrize("attack", _ATTACKS)
def test_the_callers_grad_mode_and_autocast_change_nothing(
    context: Callable[[], AbstractContextManager[object]], attack: GradientAttack, images: Tensor, labels: Tensor
) -> None:
    network = _network()  # In train mode, with batch norm and dropout.
    torch.manual_seed(5)
    expected = attack(network, images, labels)
    with context():
        torch.manual_seed(5)
        before = _state(network)
        adversarial = attack(network, images.clone(), labels.clone())
        _assert_same(_state(network), before)
    assert torch.equal(adversarial, expected)


@pytest.mark.parametrize("caller", [nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16)])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_precision_alone_decides_the_type_of_the_forward_pass(
    caller: AbstractContextManager[object], precision: torch.dtype | None, smooth: nn.Sequential, images: Tensor
) -> None:
    seen: list[torch.dtype] = []
    smooth[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    points = images.clone().requires_grad_()
    with caller, attack_view(smooth, precision=precision) as logits:
        outputs = logits(points)
        (gradients,) = torch.autograd.grad(outputs.sum(), points)
    assert seen == [precision or torch.float32]
    assert outputs.dtype == gradients.dtype == torch.float32
    torch.testing.assert_close(
        outputs, smooth(images), rtol=0.02 if precision else 1e-5, atol=0.02 if precision else 1e-5
    )


def test_a_network_without_parameters_can_be_attacked(images: Tensor) -> None:
    adversarial = pgd(nn.Flatten(), images, torch.zeros(12).long(), Threat("linf", 0.1), steps=1, step_size=0.1)
    assert Threat("linf", 0.1).distance(images, adversarial).max() > 0.05


def test_a_data_parallel_wrapper_is_bypassed(smooth: nn.Module, images: Tensor, labels: Tensor) -> None:
    wrapper = DataParallel(smooth)
    wrapper.register_forward_pre_hook(lambda *_: pytest.fail("the wrapper's forward was called"))
    assert torch.equal(_ATTACK(wrapper, images, labels), _ATTACK(smooth, images, labels))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A real process group of one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_ddp_training_steps_are_the_same_with_attacks_before_and_inside_them(images: Tensor, labels: Tensor) -> None:
    attacked, plain = (DistributedDataParallel(_fine_tuned(images, labels)) for _ in range(2))
    for _ in range(3):
        expected = _train_step(plain, images, labels, lambda: None)
        _assert_same(_train_step(attacked, images, labels, lambda: _ATTACK(attacked, images, labels)), expected)


@pytest.mark.usefixtures("group")
def test_ddp_reduces_every_gradient_after_attacks(images: Tensor, labels: Tensor) -> None:
    network, alone = _network(), _network()
    wrapper = DistributedDataParallel(network)
    reduced: list[Tensor] = []

    def doubling(_state: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        reduced.extend(bucket.gradients())
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(2.0 * bucket.buffer())
        return future

    wrapper.register_comm_hook(None, doubling)
    _train_step(wrapper, images, labels, lambda: _ATTACK(wrapper, images, labels))
    _train_step(alone, images, labels, lambda: None)
    assert len(reduced) == len(list(network.parameters()))
    for parameter, other in zip(network.parameters(), alone.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 2.0 * other.grad)


@pytest.mark.usefixtures("group")
def test_the_forward_of_ddp_is_bypassed(smooth: nn.Module, images: Tensor, labels: Tensor) -> None:
    wrapper = DistributedDataParallel(smooth)
    wrapper.register_forward_pre_hook(lambda *_: pytest.fail("the wrapper's forward was called"))
    wrapper.train()
    adversarial = _ATTACK(wrapper, images, labels)
    assert wrapper.training
    assert torch.equal(adversarial, _ATTACK(smooth, images, labels))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_state_and_its_global_generator_are_as_they_were(
    mixed: nn.Module, images: Tensor, labels: Tensor
) -> None:
    network = mixed.cuda()
    before, generator = _state(network), torch.cuda.get_rng_state()
    adversarial = _ATTACK(network, images.cuda(), labels.cuda())
    _assert_same(_state(network), before)
    assert torch.equal(torch.cuda.get_rng_state(), generator)
    assert adversarial.is_cuda
