"""Programs and compiled networks are attacked as the networks that they were made of, whatever type they compute in."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import JudgingAttack, Threat, attack_named, logits_of, pgd
from distsens.attacks.apgd import APGD
from distsens.attacks.square import Square
from distsens.errors import InputError

_THREAT = Threat("linf", 0.1)


def _exported(network: nn.Module, images: Tensor) -> nn.Module:
    """What MLflow keeps of a model, too."""
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(network, (images,), dynamic_shapes=(batch,)).module()


def _exported_as_it_is(network: nn.Module, images: Tensor) -> nn.Module:
    """For batches of this size and no others."""
    return torch.export.export(network, (images,)).module()


def _traced(network: nn.Module, images: Tensor) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(network, images)  # type: ignore[no-any-return]


def _scripted(network: nn.Module, images: Tensor) -> nn.Module:
    return torch.jit.script(network)  # type: ignore[no-any-return]


def _compiled(network: nn.Module, images: Tensor) -> nn.Module:
    return torch.compile(network, backend="eager")  # type: ignore[no-any-return]


_KINDS = [_exported, _traced, _scripted, _compiled]


@pytest.fixture
def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        built = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(), nn.Flatten(), nn.Linear(96, 5)
        )
        built(torch.rand(20, 3, 6, 6))
    return built.eval()


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("attack", ["pgd", "apgd", "square"])
def test_a_program_is_attacked_as_its_network_is(
    kind: Callable[[nn.Module, Tensor], nn.Module], attack: str, network: nn.Sequential, images: Tensor
) -> None:
    labels = torch.arange(len(images)) % 5
    program = kind(network, images)
    if attack == "pgd":
        pgd_ = attack_named("pgd", _THREAT, steps=3)
        found, expected = (pgd_(one, images, labels) for one in (program, network))
    else:
        judge: JudgingAttack = APGD(_THREAT, steps=5) if attack == "apgd" else Square(_THREAT, queries=20)
        found, expected = (judge(one, images, labels).adversarial for one in (program, network))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_program_for_one_size_of_batch_is_attacked_by_that_and_refuses_another_in_one_line(
    network: nn.Sequential, images: Tensor
) -> None:
    program, labels = _exported_as_it_is(network, images), torch.arange(len(images)) % 5
    attack = attack_named("pgd", _THREAT, steps=3)
    torch.testing.assert_close(attack(program, images, labels), attack(network, images, labels), rtol=1e-4, atol=1e-4)
    with pytest.raises(
        InputError, match=r"^model: got 'an exported program'; it takes no images \(5, 3, 6, 6\)[^\n]*$"
    ):
        attack(program, images[:5], labels[:5])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_any_type_is_attacked_by_float32_images(
    dtype: torch.dtype, network: nn.Sequential, images: Tensor
) -> None:
    labels, typed = torch.arange(len(images)) % 5, network.to(dtype)
    torch.testing.assert_close(logits_of(typed, images), typed(images.to(dtype)).float(), rtol=0.02, atol=0.02)
    adversarial = pgd(typed, images, labels, _THREAT, steps=2, step_size=0.1)
    assert adversarial.dtype is torch.float32
    assert 0.09 < _THREAT.distance(images, adversarial).max() <= 0.1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int64])
def test_images_in_which_eps_would_be_rounded_are_refused(
    dtype: torch.dtype, network: nn.Sequential, images: Tensor
) -> None:
    with pytest.raises(InputError, match=rf"^images: got '{str(dtype)[6:]}'; must be float32"):
        pgd(network, images.to(dtype), torch.zeros(len(images)).long(), _THREAT, steps=1, step_size=0.1)
