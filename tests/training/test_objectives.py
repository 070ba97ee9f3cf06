from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from distsens import assembly
from distsens.experiment import Experiment, ObjectiveChoice
from distsens.training import Batch, TrainingState

NAMES = get_args(ObjectiveChoice.model_fields["name"].annotation)


def bright_halves(count: int = 24) -> Batch:
    """Images of noise below 0.3 whose left, right or upper half is brighter by 0.6: three classes far apart."""
    labels = torch.arange(count) % 3
    images = 0.3 * torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    images[labels == 0, :, :, :3] += 0.6
    images[labels == 1, :, :, 3:] += 0.6
    images[labels == 2, :, :3, :] += 0.6
    return Batch(images, labels, torch.arange(count), global_size=count)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_learns_classes_that_are_far_apart(name: str) -> None:
    experiment = Experiment.parse({"objective": {"name": name}, "threat": {"eps": 0.1}, "attack": {"steps": 2}})
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).train()
    state = TrainingState(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    step = assembly.build_step(experiment, state, model, ())
    batch = bright_halves()
    losses = []
    for _ in range(40):
        sums = step(batch, eps_factor=1.0, sns_weight=None, awp_gamma=0.0).sums
        losses.append(sum(float(value) for part, value in sums.items() if part.startswith("loss/")))
    assert losses[-1] < 0.3 * losses[0]
    assert all(float(value) == float(sums["images"]) for part, value in sums.items() if part.startswith("correct/"))
