"""How long the training that the benchmark times is."""

from __future__ import annotations

import pytest
import torch

from distsens.benchmark import distributed
from distsens.experiment import Experiment

VALIDATION_S, PASS_S = 0.3, 1e-4


def _epoch(experiment: Experiment, _: torch.device) -> float:
    """Seconds of an epoch on an imagined machine."""
    assert experiment.data.limit is not None
    return VALIDATION_S + PASS_S * experiment.data.limit * experiment.attack.steps


@pytest.mark.parametrize("target", [0.9, 1.2, 3.0, 60.0])
def test_an_epoch_takes_the_time_it_is_to_take_though_validation_takes_its_own(
    target: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_train_here", _epoch)
    cpu = torch.device("cpu")
    experiment = distributed._sized({"name": "digits"}, target, cpu, "fp32")
    assert _epoch(experiment, cpu) == pytest.approx(target, rel=0.05)


def test_an_epoch_is_no_shorter_than_one_of_a_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_train_here", _epoch)
    experiment = distributed._sized({"name": "digits"}, 0.01, torch.device("cpu"), "fp32")
    assert experiment.attack.steps == 10
    assert experiment.data.limit is not None
    assert experiment.data.limit >= experiment.training.batch_size
