"""Training: one step, the loop, schedules, the state that is saved and resumed."""

from distsens.training.batch_norm import BatchNormHalves, keeping_statistics, normalising_halves
from distsens.training.free import FreeStep
from distsens.training.health import (
    TrainingStoppedError,
    check_classified,
    check_collapse,
    check_finite,
    stopping_at_nan,
)
from distsens.training.loop import Plan, Progress, Step, Validation, Watchers, train
from distsens.training.overfitting import (
    TRAINING_ATTACK,
    Alarm,
    catastrophic_overfitting,
    robust_overfitting,
    rolled_back,
)
from distsens.training.reduce import broadcast_module, sum_over_workers, world
from distsens.training.schedules import LearningRate, ramp
from distsens.training.state import (
    STATE,
    WEIGHTS,
    EpochRecord,
    TrainingState,
    best_epoch,
    load_weights,
    stored_history,
    weights_to_bytes,
)
from distsens.training.step import Batch, StepResult, TrainingStep
from distsens.training.sync_batch_norm import own_forwards, sharing_statistics
from distsens.training.weight_perturbation import perturbed_weights

__all__ = [
    "STATE",
    "TRAINING_ATTACK",
    "WEIGHTS",
    "Alarm",
    "Batch",
    "BatchNormHalves",
    "EpochRecord",
    "FreeStep",
    "LearningRate",
    "Plan",
    "Progress",
    "Step",
    "StepResult",
    "TrainingState",
    "TrainingStep",
    "TrainingStoppedError",
    "Validation",
    "Watchers",
    "best_epoch",
    "broadcast_module",
    "catastrophic_overfitting",
    "check_classified",
    "check_collapse",
    "check_finite",
    "keeping_statistics",
    "load_weights",
    "normalising_halves",
    "own_forwards",
    "perturbed_weights",
    "ramp",
    "robust_overfitting",
    "rolled_back",
    "sharing_statistics",
    "stopping_at_nan",
    "stored_history",
    "sum_over_workers",
    "train",
    "weights_to_bytes",
    "world",
]
