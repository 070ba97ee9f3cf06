"""Small but whole trainings on the digits, put together as a worker does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distsens import assembly
from distsens.data import Dataset, Images
from distsens.evaluation import Measurement, measure
from distsens.experiment import Experiment, merge
from distsens.training import (
    Plan,
    Progress,
    Step,
    TrainingState,
    Watchers,
    train,
    world,
)

EVERYTHING: dict[str, Any] = {
    "data": {"limit": 400, "augment": ["crop"]},
    "threat": {"eps": 0.1},
    "attack": {"steps": 2},
    "validation": {"steps": 2},
    "stabilize": {
        "weight": 0.5,
        "ratio": 0.2,
        "pairs": 0.25,
        "refresh_steps": 3,
        "warmup_start": 0.2,
        "warmup_end": 0.5,
    },
    "training": {"epochs": 3, "batch_size": 49, "lr": 0.7, "eps_warmup": 0.5, "ema_decay": 0.9, "gradient_clip": 1.0},
    "workers": {"num": 1},
}
"""All that a training can have, on few images; the batch falls to two and to three workers unevenly."""

JUMPY: dict[str, Any] = {
    "attack": {"steps": 1, "step_size": 0.1},
    "validation": {"steps": 5},
    "training": {"epochs": 5, "lr": 0.5, "schedule": "constant"},
    "alarm": {"action": "rollback", "gap": 0.001, "fall": 0.9},
}
"""On top of it an alarm that takes the first fluctuation for catastrophic overfitting."""


@dataclass(frozen=True)
class Run:
    """A training that has not begun."""

    state: TrainingState
    step: Step
    plan: Plan
    images: Images
    labels: Tensor
    validate: Callable[[], Measurement]

    def go(
        self,
        on_epoch: Callable[[TrainingState, bool], None] = lambda *_: None,
        on_step: Callable[[Progress], None] = lambda _: None,
    ) -> TrainingState:
        """Train to the end of the plan from wherever the state stands."""
        self.train(on_epoch, on_step)
        return self.state

    def train(
        self,
        on_epoch: Callable[[TrainingState, bool], None] = lambda *_: None,
        on_step: Callable[[Progress], None] = lambda _: None,
        stored: Mapping[int, dict[str, bytes]] = MappingProxyType({}),
    ) -> str | None:
        """The same; why it ended early, if it did. A rollback reads the epoch's files in ``stored``."""
        watchers = Watchers(self.validate, on_step, on_epoch, lambda epoch: stored[epoch])
        return train(self.state, self.step, self.images, self.labels, self.plan, watchers)


def smooth() -> nn.Module:
    """A small network without batch norm and without kinks, so that rounding errors stay small."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.Tanh(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(32, 24),
        nn.Tanh(),
        nn.Linear(24, 10),
    )


def digits_run(
    changes: Mapping[str, Any] | None = None,
    network: Callable[[], nn.Module] = smooth,
    dataset: Dataset | None = None,
) -> Run:
    """``EVERYTHING`` with changes on top, for an untrained network; ``dataset`` saves reading it once more."""
    experiment = Experiment.parse(merge(EVERYTHING, changes or {}))
    dataset = dataset or assembly.load_data(experiment)
    torch.manual_seed(experiment.seed)
    model = network().to(memory_format=torch.channels_last)
    neurons = assembly.count_neurons(experiment, model, dataset.shape)
    layers = tuple(neurons)
    device = torch.device("cpu")
    stabilizer = assembly.build_stabilizer(experiment, neurons, device)
    state = TrainingState(
        model, assembly.build_optimizer(experiment, model), assembly.build_average(experiment, model), stabilizer
    )
    distributed = DistributedDataParallel(model) if world()[1] > 1 else model
    step = assembly.build_step(experiment, state, distributed, layers)
    images, labels = dataset.train.tensors()
    held_out = dataset.validation.tensors()

    def validate() -> Measurement:
        return measure(
            state.classifier,
            *held_out,
            assembly.build_validation_attacks(experiment, state.history),
            layers=layers,
            neurons=neurons,
            batch_size=64,
            seed=experiment.seed,
            device=device,
        )

    extra = assembly.build_extra(experiment, dataset.extra)
    plan = assembly.build_plan(experiment, len(images), held_out[1].numpy(), extra)
    return Run(state, step, plan, images, labels, validate)
