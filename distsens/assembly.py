"""An experiment turned into its parts: the one place that knows both the fields of a recipe and what they build."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distsens import data, models
from distsens.attacks import AttackName, GradientAttack, Threat, attack_named
from distsens.data import NO_EXTRA, Dataset, Extra, Source, steps_per_epoch
from distsens.errors import InputError
from distsens.experiment import Attack, Experiment, Precision
from distsens.networks import laid_out
from distsens.objectives import Objective, alp, fast_at, free_at, mart, nat, pgd_at, standard, trades
from distsens.sensitivity import Stabilizer, Stabilizing, neuron_counts
from distsens.training import (
    TRAINING_ATTACK,
    Alarm,
    EpochRecord,
    FreeStep,
    LearningRate,
    Plan,
    Step,
    TrainingState,
    TrainingStep,
    rolled_back,
    world,
)

if TYPE_CHECKING:
    from distsens.storage.bucket_tree import BucketTree

DATA_VARIABLE = "DISTSENS_DATA"
_ONECYCLE_WARMUP = 0.3
_PAPER_ATTACKS: dict[str, AttackName] = {"nat": "fgsm", "fast_at": "fast_fgsm", "free_at": "fgsm"}


def data_root(experiment: Experiment) -> Path | BucketTree:
    """Folder of the data sets, or bucket of one: the recipe's, else $DISTSENS_DATA, else ./data."""
    root = experiment.data.root or os.environ.get(DATA_VARIABLE) or "data"
    if not root.startswith("s3://"):
        return Path(root).expanduser().absolute()
    from distsens.storage.bucket_tree import BucketTree  # only now: what needs no bucket works without boto3

    return BucketTree.at(root)


def data_address(experiment: Experiment) -> str:
    """The same, for people to read."""
    root = data_root(experiment)
    return str(root) if isinstance(root, Path) else root.url


def load_data(experiment: Experiment, tell: Callable[[str], None] = lambda _: None) -> Dataset:
    """The experiment's data, split by its seed; ``tell`` hears how far the reading of many files has come."""
    wanted = experiment.data
    return data.load(
        wanted.name,
        Source(
            data_root(experiment),
            wanted.download,
            wanted.image_size,
            wanted.test_fraction,
            wanted.memory,
            tell,
            resize=wanted.resize,
            interpolation=wanted.interpolation,
        ),
        validation_fraction=wanted.validation_fraction,
        seed=experiment.seed,
        limit=wanted.limit,
        extra=_extra_file(experiment),
    )


def _extra_file(experiment: Experiment) -> Path | None:
    path, sha256 = experiment.data.extra, experiment.data.extra_sha256
    if path is None:
        if sha256 is not None:
            raise InputError("data.extra_sha256", sha256, "there is no data.extra to have it")
        return None
    path = path.expanduser().absolute()
    if sha256 is not None and (found := data.extra_digest(path)) != sha256:
        raise InputError("data.extra_sha256", sha256, f"{path} is another file: its SHA-256 is {found}")
    return path


def build_extra(experiment: Experiment, images: int) -> Extra:
    """How many of so many extra images each global batch has."""
    if images == 0:
        return NO_EXTRA
    batch_size, ratio = experiment.training.batch_size, experiment.data.extra_ratio
    per_batch = round(ratio * batch_size)
    if not 1 <= per_batch < batch_size:
        raise InputError("data.extra_ratio", ratio, f"leaves one kind without images in batches of {batch_size}")
    return Extra(images, per_batch)


def build_model(experiment: Experiment, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The classifier of [0, 1] images to start from, the same for the same seed and weights file."""
    settings = experiment.model
    model = models.build(
        settings.name,
        shape=shape,
        classes=classes,
        mean=settings.mean,
        std=settings.std,
        seed=experiment.seed,
        small_images=settings.small_images,
    )
    if settings.weights is not None:
        models.load_initial_weights(model, settings.weights.expanduser(), settings.weights_sha256)
    elif settings.weights_sha256 is not None:
        raise InputError("model.weights_sha256", settings.weights_sha256, "there is no model.weights to have it")
    return laid_out(model, shape)


def pin_files(experiment: Experiment) -> Experiment:
    """The same experiment with absolute paths and SHA-256 of its files, for workers and resumed runs.

    They are the initial weights and the extra images.
    """
    model, wanted = experiment.model, experiment.data
    if model.weights is not None:
        path = model.weights.expanduser().absolute()
        sha256 = model.weights_sha256 or models.weights_digest(path)
        model = model.model_copy(update={"weights": path, "weights_sha256": sha256})
    if wanted.extra is not None:
        path = wanted.extra.expanduser().absolute()
        sha256 = wanted.extra_sha256 or data.extra_digest(path)
        wanted = wanted.model_copy(update={"extra": path, "extra_sha256": sha256})
    return experiment.model_copy(update={"model": model, "data": wanted})


def build_attack(experiment: Experiment, settings: Attack, *, auto: AttackName = "pgd") -> GradientAttack:
    """One of the experiment's attacks, in its threat model; ``auto`` is what that name stands for."""
    return attack_named(
        auto if settings.name == "auto" else settings.name,
        _threat(experiment),
        steps=settings.steps,
        step_size=settings.step_size,
        random_start=settings.random_start,
        restarts=settings.restarts,
        momentum=settings.momentum,
        l1_fraction=settings.l1_fraction,
        precision=dtype(settings.precision),
    )


def build_training_attack(experiment: Experiment) -> GradientAttack:
    """The attack trained with, by default that of the objective's paper.

    Where that takes one step, of a length of its own, steps and step size of the recipe are not for it.
    """
    paper, settings = _PAPER_ATTACKS.get(experiment.objective.name), experiment.attack
    if paper is not None and settings.name == "auto":
        settings = settings.model_copy(update={"step_size": None})
    return build_attack(experiment, settings, auto=paper or "pgd")


def build_fgsm(experiment: Experiment) -> GradientAttack:
    """FGSM in the experiment's threat model."""
    return attack_named("fgsm", _threat(experiment), l1_fraction=experiment.test.l1_fraction)


def _threat(experiment: Experiment) -> Threat:
    return Threat(experiment.threat.norm, experiment.threat.eps)


def build_validation_attacks(experiment: Experiment, history: Sequence[EpochRecord]) -> dict[str, GradientAttack]:
    """The attack that selects, and the training attack for as long as the alarm compares the two."""
    attacks = {"pgd": build_attack(experiment, experiment.validation)}
    if build_alarm(experiment) is not None and rolled_back(history) is None:
        attacks[TRAINING_ATTACK] = build_training_attack(experiment)
    return attacks


def build_alarm(experiment: Experiment) -> Alarm | None:
    """The alarm of catastrophic overfitting, or None.

    There is none where it is not wanted, where nothing adversarial is trained on, or where the training attack takes as
    many steps as the validation attack: then it is no weaker, and overfitting to it is not seen.
    """
    settings, probe = experiment.alarm, build_attack(experiment, experiment.validation)
    weaker = build_training_attack(experiment).steps < probe.steps
    if settings.action == "none" or not weaker or not build_objective(experiment).uses_adversarial:
        return None
    return Alarm(settings.action, settings.gap, settings.fall, probe)


def build_objective(experiment: Experiment) -> Objective:
    """The loss that is trained with."""
    choice = experiment.objective
    smoothing = choice.label_smoothing
    beta: dict[str, float] = {} if choice.beta is None else {"beta": choice.beta}
    match choice.name:
        case "standard":
            return standard(smoothing)
        case "nat":
            return nat(choice.alpha, smoothing)
        case "pgd_at":
            return pgd_at(smoothing)
        case "fast_at":
            return fast_at(smoothing)
        case "free_at":
            return free_at(smoothing)
        case "alp":
            return alp(**beta, label_smoothing=smoothing)
        case "trades":
            return trades(**beta, label_smoothing=smoothing)
        case "mart":
            return mart(**beta)


def build_step(experiment: Experiment, state: TrainingState, model: nn.Module, layers: tuple[str, ...]) -> Step:
    """What trains on one batch; ``model`` is the state's, or DDP around it."""
    step = build_training_step(experiment, state, model, layers)
    return FreeStep(step, experiment.objective.replays) if experiment.objective.name == "free_at" else step


def build_training_step(
    experiment: Experiment, state: TrainingState, model: nn.Module, layers: tuple[str, ...]
) -> TrainingStep:
    """The step itself, which free adversarial training repeats."""
    return TrainingStep(
        model,
        state.optimizer,
        build_objective(experiment),
        build_training_attack(experiment),
        state.stabilizer,
        layers,
        dtype(experiment.training.precision),
        experiment.training.gradient_clip,
        world()[1],
        experiment.training.batch_norm,
        experiment.training.sync_batch_norm,
    )


def count_neurons(experiment: Experiment, model: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Neurons of the layers that are stabilized or, where nothing is, measured; in the order of the forward.

    Without stabilizing ``"auto"`` leaves out layers that cannot be read image by image: no training needs them.
    """
    sns = experiment.stabilize
    try:
        return neuron_counts(model, sns.layers, torch.zeros(1, *shape), readable=sns.weight == 0)
    except InputError as error:
        if error.field != "layers":
            raise
        raise InputError("stabilize.layers", error.value, error.allowed) from None


def build_stabilizer(experiment: Experiment, neurons: Mapping[str, int], device: torch.device) -> Stabilizer | None:
    """SNS, or None where its weight is zero."""
    sns = experiment.stabilize
    if sns.weight == 0:
        return None
    settings = Stabilizing(sns.ratio, sns.selection, sns.distance, sns.measure, sns.decay, experiment.seed, sns.pairs)
    return Stabilizer(settings, neurons, device)


def build_optimizer(experiment: Experiment, model: nn.Module) -> Optimizer:
    """SGD with Nesterov momentum, or AdamW."""
    training = experiment.training
    if training.optimizer == "adamw":
        return AdamW(model.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    return SGD(
        model.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
    )


def build_average(experiment: Experiment, model: nn.Module) -> AveragedModel | None:
    """Exponential average of the weights and buffers, or None."""
    decay = experiment.training.ema_decay
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def build_plan(experiment: Experiment, images: int, validation_labels: np.ndarray, extra: Extra = NO_EXTRA) -> Plan:
    """Length, order and schedules of a training on this many images, extra ones included."""
    training, sns = experiment.training, experiment.stabilize
    warmup = training.warmup
    if warmup is None:
        warmup = _ONECYCLE_WARMUP if training.schedule == "onecycle" else 0.0
    return Plan(
        epochs=training.epochs,
        batch_size=training.batch_size,
        seed=experiment.seed,
        learning_rate=LearningRate(
            training.schedule,
            training.lr,
            steps_per_epoch(images, training.batch_size, extra) * training.epochs,
            warmup,
            training.milestones,
            training.drop,
        ),
        eps=experiment.threat.eps,
        eps_warmup=training.eps_warmup,
        sns_weight=sns.weight,
        sns_ramp=(sns.warmup_start, sns.warmup_end),
        awp_gamma=training.awp_gamma or 0.0,
        awp_warmup=training.awp_warmup,
        refresh_steps=sns.refresh_steps,
        ratio=sns.ratio,
        extra=extra,
        augmentations=experiment.data.augment,
        chance=float(np.bincount(validation_labels).max() / len(validation_labels)),
        selects="clean" if experiment.objective.name == "standard" else "robust",
        patience=training.patience,
        alarm=build_alarm(experiment),
    )


def dtype(precision: Precision) -> torch.dtype | None:
    """Autocast type of a precision; None is float32."""
    return torch.bfloat16 if precision == "bf16" else None
