"""With one process; several workers' batch norm is among what ``test_workers`` compares."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from distsens.sensitivity import match_layers, neuron_counts
from distsens.training import WorkersBatchNorm, load_weights, synchronised, weights_to_bytes

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3, eps=1e-3, momentum=0.2)),
        nn.Flatten(),
        nn.BatchNorm1d(12, affine=False),
        nn.BatchNorm1d(12, track_running_stats=False).eval(),
        nn.Linear(12, 2),
    )


def test_every_layer_is_replaced_and_keeps_parameters_buffers_names_and_settings() -> None:
    plain = network()
    shared = synchronised(copy.deepcopy(plain), CPU)
    assert [type(layer) for layer in shared.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)] == [
        WorkersBatchNorm
    ] * 3
    assert list(shared.state_dict()) == list(plain.state_dict())
    for before, after in zip(plain.modules(), shared.modules(), strict=True):
        assert before.training == after.training
        for setting in ("eps", "momentum", "affine", "track_running_stats", "num_features"):
            assert getattr(before, setting, None) == getattr(after, setting, None)


def test_optimizers_made_before_train_what_is_replaced() -> None:
    plain = network()
    before, buffers = list(plain.parameters()), list(plain.buffers())
    shared = synchronised(plain, CPU)
    assert shared is plain
    assert all(p is q for p, q in zip(before, shared.parameters(), strict=True))
    assert all(p is q for p, q in zip(buffers, shared.buffers(), strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_one_worker_alone_is_normalised_as_by_torchs_layers(training: bool) -> None:
    plain = network().train(training)
    shared = synchronised(copy.deepcopy(plain), CPU)
    images = torch.randn(5, 1, 3, 3)
    assert torch.equal(shared(images), plain(images))
    torch.testing.assert_close(dict(shared.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)


def test_a_checkpoint_of_either_is_one_of_the_other() -> None:
    plain = network()
    shared = synchronised(network(), CPU)
    shared(torch.randn(5, 1, 3, 3))
    load_weights(plain, weights_to_bytes(shared))
    torch.testing.assert_close(dict(plain.state_dict()), dict(shared.state_dict()), rtol=0, atol=0)


def test_gpus_get_torchs_layer() -> None:
    shared = synchronised(network(), torch.device("cuda"))
    assert sum(isinstance(layer, nn.SyncBatchNorm) for layer in shared.modules()) == 3


def test_a_probe_reads_channels_of_a_synchronised_layer() -> None:
    shared = synchronised(nn.Sequential(nn.Conv1d(1, 4, 2), nn.BatchNorm1d(4)), CPU)
    assert match_layers(shared, ["1"]) == ("1",)
    assert neuron_counts(shared, ["1"], torch.zeros(2, 1, 7)) == {"1": 4}


def test_rows_without_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        WorkersBatchNorm(3)(torch.zeros(3))
