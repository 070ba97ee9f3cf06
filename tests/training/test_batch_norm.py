from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distsens.errors import InputError
from distsens.training import keeping_statistics, normalising_halves

HOW = ("joint", "separate", "adversarial", "benign")
NORMS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "units": (nn.BatchNorm1d, ()),
    "sequence": (nn.BatchNorm1d, (5,)),
    "image": (nn.BatchNorm2d, (4, 3)),
    "volume": (nn.BatchNorm3d, (2, 3, 2)),
    "synchronised": (nn.SyncBatchNorm, (4, 3)),
}


def inputs(shape: tuple[int, ...], count: int = 7) -> Tensor:
    """The adversarial half is far from the benign one."""
    values = torch.randn(count, 3, *shape, generator=torch.Generator().manual_seed(0))
    values[3:] = 3 * values[3:] + 5
    return values


def stack(kind: str) -> tuple[nn.Sequential, Tensor]:
    """Two normalisations around a nonlinearity, and what goes in: three benign rows, four adversarial ones."""
    norm, shape = NORMS[kind]
    torch.manual_seed(1)
    network = nn.Sequential(norm(3), nn.Tanh(), norm(3, momentum=None)).train()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return network, inputs(shape)


def buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.named_buffers()}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("how", ["separate", "adversarial", "benign"])
def test_halves_are_normalised_as_by_two_forwards(kind: str, how: str) -> None:
    network, rows = stack(kind)
    reference, without = copy.deepcopy(network), copy.deepcopy(network)
    with normalising_halves(network, 3, 7, how):
        found = network(rows)
    halves = {"benign": rows[:3], "adversarial": rows[3:]}
    expected = [(reference if how in ("separate", half) else without)(part) for half, part in halves.items()]
    torch.testing.assert_close(found, torch.cat(expected))
    torch.testing.assert_close(buffers(network), buffers(reference))
    parameters = [list(one.parameters()) for one in (network, reference, without)]
    weights = torch.randn(found.shape)
    gradients = torch.autograd.grad((found * weights).sum(), parameters[0])
    other = [
        torch.autograd.grad((torch.cat(expected) * weights).sum(), group, allow_unused=True, retain_graph=True)
        for group in parameters[1:]
    ]
    for gradient, *wanted in zip(gradients, *other, strict=True):
        torch.testing.assert_close(gradient, sum(one for one in wanted if one is not None))


@pytest.mark.parametrize("kind", NORMS)
def test_jointly_is_what_the_layers_do_by_themselves(kind: str) -> None:
    network, rows = stack(kind)
    reference = copy.deepcopy(network)
    with normalising_halves(network, 3, 7, "joint"):
        found = network(rows)
    assert torch.equal(found, reference(rows))
    torch.testing.assert_close(buffers(network), buffers(reference), rtol=0, atol=0)


@pytest.mark.parametrize("how", HOW)
def test_a_channels_last_batch_stays_one(how: str) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3)).train()
    rows = inputs((4, 3)).to(memory_format=torch.channels_last)
    with normalising_halves(network, 3, 7, how):
        found = network(rows)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.stride() == rows.stride()


@pytest.mark.parametrize("boundary", [0, 7])
def test_an_empty_half_is_passed_on(boundary: int) -> None:
    network, rows = stack("image")
    reference = copy.deepcopy(network)
    with normalising_halves(network, boundary, 7, "separate"):
        found = network(rows)
    assert torch.equal(found, reference(rows))
    torch.testing.assert_close(buffers(network), buffers(reference), rtol=0, atol=0)


@pytest.mark.parametrize("how", ["separate", "adversarial", "benign"])
def test_layers_in_eval_mode_and_without_running_statistics_are_left_alone(how: str) -> None:
    frozen, bare = nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3, track_running_stats=False)
    network = nn.Sequential(OrderedDict(frozen=frozen, bare=bare))
    rows, before = inputs((4, 3)), buffers(frozen)
    with normalising_halves(network, 3, 7, how):
        found = network(rows)
    expected = torch.cat([bare(frozen(half)) for half in (rows[:3], rows[3:])])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(buffers(frozen), before, rtol=0, atol=0)
    assert bare.running_mean is None
    assert not bare.track_running_stats


def traces(network: nn.Module) -> list[Any]:
    return [("forward" in vars(layer), getattr(layer, "track_running_stats", None)) for layer in network.modules()]


@pytest.mark.parametrize("how", HOW)
def test_nothing_stays_behind_also_after_an_exception(how: str) -> None:
    network, rows = stack("image")
    before = traces(network)
    with normalising_halves(network, 3, 7, how):
        network(rows)
    assert traces(network) == before
    with pytest.raises(ValueError, match="4D"), normalising_halves(network, 3, 7, how):
        network(rows[0, 0, 0].expand(7, 3))
    assert traces(network) == before
    with pytest.raises(ValueError, match="4D"), keeping_statistics(network):
        network(rows[0, 0, 0].expand(7, 3))
    assert traces(network) == before


def test_a_layer_that_sees_no_images_one_by_one_is_refused() -> None:
    network, rows = stack("image")
    with (
        pytest.raises(InputError, match=r"training\.batch_norm: got 'separate'; .*14 rows made of 7 images"),
        normalising_halves(network, 3, 7, "separate"),
    ):
        network(torch.cat([rows, rows]))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", NORMS)
def test_statistics_can_be_kept_while_batches_are_normalised_by_their_own(kind: str, how: str) -> None:
    network, rows = stack(kind)
    reference, before = copy.deepcopy(network), buffers(network)
    with keeping_statistics(network), normalising_halves(network, 3, 7, how):
        found = network(rows)
    torch.testing.assert_close(buffers(network), before, rtol=0, atol=0)
    with normalising_halves(reference, 3, 7, how):
        assert torch.equal(found, reference(rows))
    assert not torch.equal(buffers(reference)["0.running_mean"], before["0.running_mean"])
