"""With one process; several workers' batch norm is among what ``test_workers`` compares."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distsens.attacks import logits_of
from distsens.training import own_forwards, sharing_statistics
from distsens.training.sync_batch_norm import WorkersBatchNorm, _made, shares_statistics


class Scaled(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        return 0.5 * super().forward(input)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3, eps=1e-3, momentum=0.2)),
        nn.Flatten(),
        nn.BatchNorm1d(12, affine=False),
        nn.BatchNorm1d(12, track_running_stats=False).eval(),
        Scaled(12),
        nn.SyncBatchNorm(12),
        nn.Linear(12, 2),
    )


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]


def test_every_layer_shares_within_the_block_and_is_what_it_was_after_it_also_after_an_error() -> None:
    model = network()
    kinds = [type(layer) for layer in norms(model)]

    def fail(*_: object) -> None:
        raise KeyError

    model[-1].register_forward_hook(fail)
    with sharing_statistics(model):
        assert all(isinstance(layer, WorkersBatchNorm) for layer in norms(model))
        assert all(isinstance(layer, kind) for layer, kind in zip(norms(model), kinds, strict=True))
    with pytest.raises(KeyError), sharing_statistics(model):
        model(torch.zeros(5, 1, 3, 3))
    assert [type(layer) for layer in norms(model)] == kinds
    assert [shares_statistics(layer) for layer in norms(model)] == [False] * 4 + [True]


def test_layers_keep_identity_parameters_buffers_and_hooks() -> None:
    model = network()
    layers, state = list(model.modules()), dict(model.state_dict(keep_vars=True))
    heard = []
    model[2].register_forward_hook(lambda *_: heard.append("forward"))
    with sharing_statistics(model):
        assert all(one is other for one, other in zip(layers, model.modules(), strict=True))
        assert all(value is state[name] for name, value in model.state_dict(keep_vars=True).items())
        model(torch.randn(5, 1, 3, 3))
    assert heard == ["forward"]


@pytest.mark.parametrize("training", [True, False])
def test_one_worker_alone_is_normalised_as_by_torchs_layers(training: bool) -> None:
    plain = network().train(training)
    shared = copy.deepcopy(plain)
    images = torch.randn(5, 1, 3, 3)
    with sharing_statistics(shared):
        outputs = shared(images)
    assert torch.equal(outputs, plain(images))
    torch.testing.assert_close(dict(shared.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)


def test_on_a_gpu_layers_compute_as_torchs() -> None:
    model = nn.BatchNorm2d(3)
    for kind in (nn.BatchNorm2d, Scaled):
        made = _made(kind, nn.SyncBatchNorm)
        assert issubclass(made, kind)
        assert super(kind, made).forward is nn.SyncBatchNorm.forward
        assert made.process_group is None
    model.__class__ = _made(nn.BatchNorm2d, nn.SyncBatchNorm)
    images = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(model(images), nn.BatchNorm2d(3)(images))


def test_an_attack_after_it_sees_a_network_as_if_nothing_had_been() -> None:
    model, images = network(), torch.rand(5, 1, 3, 3)
    before = logits_of(model, images)
    with sharing_statistics(model):
        pass
    assert torch.equal(logits_of(model, images), before)


def test_layers_with_a_forward_of_their_own_are_named() -> None:
    model = network()
    assert own_forwards(model) == ("4",)
    model[2].forward = lambda rows: rows  # type: ignore[method-assign]
    assert own_forwards(model) == ("2", "4")


def test_rows_without_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        WorkersBatchNorm(3)(torch.zeros(3))
