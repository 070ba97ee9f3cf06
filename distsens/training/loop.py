"""The loop: epochs of steps, validation after each, and one record of it all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from distsens.attacks import GradientAttack
from distsens.data import NO_EXTRA, Extra, Images, augment, epoch_batches, rank_share, read_ahead, to_pixels
from distsens.randomness import sample_keys
from distsens.sensitivity import LayerSensitivity, kept_fraction, select_neurons
from distsens.training.health import check_classified, check_collapse, check_finite, stopping_at_nan
from distsens.training.overfitting import (
    TRAINING_ATTACK,
    Alarm,
    catastrophic_overfitting,
    robust_overfitting,
    rollback_metrics,
    rolled_back,
)
from distsens.training.reduce import broadcast_buffers, sum_over_workers, world
from distsens.training.schedules import LearningRate, ramp
from distsens.training.state import EpochRecord, TrainingState
from distsens.training.step import Batch, StepResult

Reader = Callable[[Images, Sequence[Tensor]], Iterator[Tensor]]
"""Gives the images of each batch of numbers in turn, as `read_ahead` does."""


class Step(Protocol):
    """What trains on one batch: a ``TrainingStep`` or a ``FreeStep``."""

    def begin_epoch(self) -> None:
        """Called before the first batch of every epoch."""

    def trained_with(self, attack: GradientAttack) -> Step:
        """The step that trains on this attack's examples from now on."""

    def __call__(self, batch: Batch, *, eps_factor: float, sns_weight: float | None, awp_gamma: float) -> StepResult:
        """Train on a worker's share of a batch; see ``TrainingStep`` for what the schedules decide."""


class Validation(Protocol):
    """What a validation has to tell; equal on all workers."""

    @property
    def clean_accuracy(self) -> float:
        """In [0, 1]."""

    @property
    def robust_accuracy(self) -> float:
        """In [0, 1], under the attack that selects."""

    @property
    def robust_accuracies(self) -> Mapping[str, float]:
        """By attack: that of ``TRAINING_ATTACK`` is recorded where it was measured."""

    @property
    def images(self) -> int:
        """How many were judged."""

    @property
    def not_finite(self) -> int:
        """How many of them had logits that are NaN or infinite, which counts as wrong."""

    @property
    def sensitivity(self) -> dict[str, LayerSensitivity]:
        """Of every neuron, between benign and adversarial validation images."""


@dataclass(frozen=True)
class Plan:
    """How long, in what order, and what changes on the way.

    epochs, batch_size (global), seed : as they say.
    learning_rate : by step over the whole run.
    eps : the threat's radius, for the record.
    eps_warmup : part of training in which eps grows from 0.
    sns_weight, sns_ramp : weight of the stabilizing term and the parts of training between which it grows.
    awp_gamma, awp_warmup : length of the weight perturbation and the part of training before it begins; 0 for none.
    refresh_steps : steps between selections of neurons; None for once an epoch.
    ratio : part of each layer's neurons that is followed from epoch to epoch.
    extra : extra images among the training images, and their part in each batch.
    augmentations : names, see ``distsens.data.augment``.
    chance : share of the most frequent class in validation.
    selects : the validation accuracy by which the best epoch is chosen: clean for a training on benign images, whose
        robust accuracy is highest where it has hardly learned anything.
    patience : epochs without a new best after which training ends, counted from when eps and SNS are at their full
        strength; None for never.
    alarm : of catastrophic overfitting, or None.
    """

    epochs: int
    batch_size: int
    seed: int
    learning_rate: LearningRate
    eps: float
    eps_warmup: float = 0.0
    sns_weight: float = 0.0
    sns_ramp: tuple[float, float] = (0.3, 0.6)
    awp_gamma: float = 0.0
    awp_warmup: float = 0.0
    refresh_steps: int | None = None
    ratio: float = 0.1
    extra: Extra = NO_EXTRA
    augmentations: tuple[str, ...] = ()
    chance: float = 0.0
    selects: Literal["robust", "clean"] = "robust"
    patience: int | None = None
    alarm: Alarm | None = None

    @property
    def full_eps(self) -> int:
        """The first epoch that ends with eps at its full size."""
        return self._epoch_at(self.eps_warmup)

    @property
    def full_strength(self) -> int:
        """The first epoch that ends with eps and the stabilizing term at their full strength."""
        return max(self.full_eps, self._epoch_at(self.sns_ramp[1] if self.sns_weight > 0 else 0.0))

    def _epoch_at(self, part: float) -> int:
        return next(epoch for epoch in range(self.epochs + 1) if epoch / self.epochs >= part)


@dataclass(frozen=True)
class Progress:
    """Where an epoch stands, by this worker's own sums."""

    epoch: int
    step: int
    steps: int
    images_per_second: float
    losses: dict[str, float]


@dataclass(frozen=True)
class Watchers:
    """Whom the loop tells.

    validate : the loop asks it for a validation of the classifier; collective.
    on_step : after every step.
    on_epoch : after every epoch with the state and whether the epoch is the best so far; this is where checkpoints
        are written.
    recall : the files of a best epoch, as they were when ``on_epoch`` told of it; collective.
    """

    validate: Callable[[], Validation]
    on_step: Callable[[Progress], None]
    on_epoch: Callable[[TrainingState, bool], None]
    recall: Callable[[int], Mapping[str, bytes]]


def train(
    state: TrainingState,
    step: Step,
    images: Images,
    labels: Tensor,
    plan: Plan,
    watchers: Watchers,
    until: int | None = None,
    read: Reader = read_ahead,
) -> str | None:
    """Train from where ``state`` stands to the end of the plan, or until the history says that going on is in vain.

    The run is a function of the plan and the initial weights alone: neither the number of workers nor an interruption
    between epochs changes more than the rounding of sums.

    Parameters
    ----------
    state : changed in place; its model and optimizer are those inside ``step``.
    step : the parts of a step.
    images, labels : the whole training set, uint8 (N, C, H, W), in memory or in files, and int64 (N,), the same on
        every worker.
    plan, watchers : see there.
    until : end after this epoch, with the plan's schedules where they then stand; None for the plan's last.
    read : gives this worker's batches of an epoch one by one.

    Returns
    -------
    Why it ended before the last epoch of the plan, or None.

    Raises
    ------
    TrainingStoppedError : when the loss is not finite or the network collapsed.
    """
    device = next(state.model.parameters()).device
    if not state.history:
        with stopping_at_nan("before the first epoch"):
            validation = watchers.validate()
        record = _record(state, 0, {}, validation, plan)
        state.initial = record.sensitivity
        watchers.on_epoch(state, False)
    for epoch in range(state.epoch + 1, (plan.epochs if until is None else until) + 1):
        if (reason := _in_vain(state.history, plan)) is not None:
            return reason
        if plan.alarm is not None and rolled_back(state.history) is not None:
            step = step.trained_with(plan.alarm.probe)
        # Layers such as dropout draw from the global generator: the same in a resumed run, different on each worker.
        torch.manual_seed(hash((plan.seed, epoch, world()[0])) % 2**63)
        sums = _train_epoch(epoch, state, step, images, labels, plan, watchers.on_step, read)
        totals = sum_over_workers(sums, device)
        for module in (state.model, state.classifier):
            broadcast_buffers(module)
        with stopping_at_nan(f"after epoch {epoch}"):
            validation = watchers.validate()
        record = _record(state, epoch, _training_metrics(totals, plan, epoch, world()[1]), validation, plan)
        check_collapse(
            state.initial,
            record.sensitivity,
            epoch=epoch,
            accuracy=validation.clean_accuracy,
            chance=plan.chance,
        )
        if plan.alarm is not None:
            _heed(plan.alarm, state, plan, watchers.recall)
        watchers.on_epoch(state, state.best is record)
    return None


def _in_vain(history: Sequence[EpochRecord], plan: Plan) -> str | None:
    """Why training ends after the last epoch of the history, or None."""
    if plan.alarm is not None and plan.alarm.action == "stop" and history[-1].alarm is not None:
        return "catastrophic overfitting"
    if plan.patience is not None:
        return robust_overfitting(history, plan.patience, plan.chance, plan.full_strength, plan.selects)
    return None


def _heed(alarm: Alarm, state: TrainingState, plan: Plan, recall: Callable[[int], Mapping[str, bytes]]) -> None:
    """Put an alarm, when it begins, on the record of the last epoch; for a rollback take up the best epoch's state."""
    line, earlier = (
        catastrophic_overfitting(history, alarm, plan.chance, plan.full_eps)
        for history in (state.history, state.history[:-1])
    )
    if line is None or earlier is not None:
        return
    metrics = state.history[-1].metrics
    if alarm.action == "rollback" and rolled_back(state.history) is None:
        best = state.best.epoch
        state.roll_back(recall(best))
        metrics = metrics | rollback_metrics(best)
        line += f"; back to epoch {best}, and on with the validation attack"
    state.history[-1] = replace(state.history[-1], metrics=metrics, alarm=line)


def _train_epoch(
    epoch: int,
    state: TrainingState,
    step: Step,
    images: Images,
    labels: Tensor,
    plan: Plan,
    on_step: Callable[[Progress], None],
    read: Reader,
) -> dict[str, Tensor | float]:
    """Every step of one epoch; sums of this worker's results."""
    rank, workers = world()
    batches = epoch_batches(len(images), plan.batch_size, plan.seed, epoch, plan.extra)
    steps = len(batches)
    share = rank_share(plan.batch_size, rank, workers)
    shares = list(batches[:, share])
    total = steps * plan.epochs
    sums: dict[str, Tensor | float] = {}
    step.begin_epoch()
    for index, (samples, pixels) in enumerate(zip(shares, read(images, shares), strict=True)):
        done = (epoch - 1) * steps + index
        for group in state.optimizer.param_groups:
            group["lr"] = plan.learning_rate.at(done)
        with stopping_at_nan(f"at epoch {epoch}, step {index + 1}"):
            result = step(
                _batch(samples, share.start, pixels, epoch, labels, plan, next(state.model.parameters()).device),
                eps_factor=_eps_factor(plan, done + 1, total),
                sns_weight=_sns_weight(plan, done + 1, steps),
                awp_gamma=plan.awp_gamma if done / total >= plan.awp_warmup else 0.0,
            )
        check_finite(result.gradient_norm, epoch=epoch, step=index + 1)
        if state.average is not None:
            state.average.update_parameters(state.model)
        if state.stabilizer is not None and (
            index == steps - 1 or (plan.refresh_steps is not None and (index + 1) % plan.refresh_steps == 0)
        ):
            state.stabilizer.refresh()
        _add(sums, result)
        on_step(_progress(epoch, index + 1, steps, sums, workers))
    return sums


def _batch(
    samples: Tensor, start: int, pixels: Tensor, epoch: int, labels: Tensor, plan: Plan, device: torch.device
) -> Batch:
    """Move a share of a batch to the device once, as uint8, and augment it there."""
    numbers = samples.to(device)
    augmented = augment(
        pixels.to(device, non_blocking=True),
        plan.augmentations,
        sample_keys(numbers, plan.seed, epoch, "augment"),
    )
    return Batch(
        images=to_pixels(augmented),
        labels=labels[samples].to(device, non_blocking=True),
        keys=sample_keys(numbers, plan.seed, epoch, "attack"),
        global_size=plan.batch_size,
        start=start,
    )


def _eps_factor(plan: Plan, done: int, total: int) -> float:
    return ramp(done, total, 0.0, plan.eps_warmup) if plan.eps_warmup > 0 else 1.0


def _sns_weight(plan: Plan, done: int, steps: int) -> float | None:
    """Weight of the stabilizing term; None up to one epoch before it grows: neurons are selected while it is 0."""
    total = steps * plan.epochs
    if plan.sns_weight * ramp(done + steps, total, *plan.sns_ramp) == 0.0:
        return None
    return plan.sns_weight * ramp(done, total, *plan.sns_ramp)


def _add(sums: dict[str, Tensor | float], result: StepResult) -> None:
    for name, value in result.sums.items():
        sums[name] = sums.get(name, 0.0) + value
    sums["gradient_norm"] = sums.get("gradient_norm", 0.0) + result.gradient_norm
    # The stabilizing part comes up only once it weighs something, on every worker at the same step.
    sums["steps"] = sums.get("steps", 0.0) + 1.0


def _progress(epoch: int, step: int, steps: int, sums: Mapping[str, Tensor | float], workers: int) -> Progress:
    images = float(sums["images"])
    return Progress(
        epoch,
        step,
        steps,
        images_per_second=workers * images / max(float(sums["seconds"]), 1e-9),
        losses={
            name.removeprefix("loss/"): float(value) / images
            for name, value in sums.items()
            if name.startswith("loss/")
        },
    )


def _training_metrics(totals: Mapping[str, float], plan: Plan, epoch: int, workers: int) -> dict[str, float]:
    """Means over the epoch's images, rates of all workers together, and where the schedules stood at its last step."""
    images, seconds = totals["images"], totals["seconds"] / workers
    steps = round(totals["steps"] / workers)
    total = steps * plan.epochs
    losses = {name: value / images for name, value in totals.items() if name.startswith("loss/")}
    accuracies = {
        f"train/{name.removeprefix('correct/')}_accuracy": value / images
        for name, value in totals.items()
        if name.startswith("correct/")
    }
    return {
        "loss": sum(losses.values()),
        **losses,
        **accuracies,
        "train/gradient_norm": totals["gradient_norm"] / totals["steps"],
        "schedule/lr": plan.learning_rate.at(epoch * steps - 1),
        "schedule/eps": plan.eps * _eps_factor(plan, epoch * steps, total),
        "schedule/sns_weight": _sns_weight(plan, epoch * steps, steps) or 0.0,
        "throughput/epoch_seconds": seconds,
        "throughput/images_per_second": images / seconds,
        "throughput/gradient_evaluations_per_second": totals["gradient_evaluations"] / seconds,
        "throughput/attack_share": totals["attack_seconds"] / totals["seconds"],
    }


def _record(
    state: TrainingState, epoch: int, training: dict[str, float], validation: Validation, plan: Plan
) -> EpochRecord:
    """Append the epoch's record to the history; only the newest record keeps the neurons."""
    check_classified(validation.not_finite, validation.images, f"validation after epoch {epoch}")
    metrics = {
        "epoch": float(epoch),
        **training,
        "validation/clean_accuracy": validation.clean_accuracy,
        "validation/robust_accuracy": validation.robust_accuracy,
    }
    if (trained := validation.robust_accuracies.get(TRAINING_ATTACK)) is not None:
        metrics[f"validation/{TRAINING_ATTACK}_accuracy"] = trained
        metrics["validation/overfitting_gap"] = trained - validation.robust_accuracy
    if validation.not_finite:
        metrics["validation/not_finite"] = float(validation.not_finite)
    if plan.selects == "clean":
        metrics["validation/selection"] = validation.clean_accuracy
    selected = select_neurons({name: one.absolute.cpu() for name, one in validation.sensitivity.items()}, plan.ratio)
    kept = kept_fraction(state.selected, selected)
    for layer, values in validation.sensitivity.items():
        metrics[f"sensitivity/absolute/{layer}"] = values.absolute.mean().item()
        metrics[f"sensitivity/relative/{layer}"] = values.relative.mean().item()
        if layer in kept:
            metrics[f"sensitivity/kept/{layer}"] = kept[layer]
    state.selected = selected
    if state.history:
        state.history[-1] = replace(state.history[-1], sensitivity={})
    record = EpochRecord(epoch, metrics, validation.sensitivity)
    state.history.append(record)
    return record
