"""Everything about an experiment that can be checked before anything is started or written."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from distsens import assembly
from distsens.attacks import GradientAttack
from distsens.data import Dataset, Extra, augment, steps_per_epoch
from distsens.distributed.cluster import check_cluster, job_submission_id
from distsens.distributed.rehearsal import Decisive, rehearse, what_decides
from distsens.errors import InputError, refusing
from distsens.experiment import Experiment
from distsens.redaction import without_secrets
from distsens.sensitivity import Stabilizer, unreadable_layers
from distsens.storage import LocalPlace, Place, check_room, open_place
from distsens.tracking import check_tracking
from distsens.training import TrainingState, own_forwards

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
_FILES_NAMED = 5
_LAYERS_NAMED = 5
_NOISY_PAIRS, _LEAST_NOISE = 4, 1e-3
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Checked:
    """What the check found: the loaded data, the layers with their neurons, and where things will be kept.

    notices : what can work and yet deserves a word.
    """

    dataset: Dataset
    extra: Extra
    neurons: dict[str, int]
    parameters: int
    storage: Place
    tracking_uri: str
    artifact_root: str | None
    notices: tuple[str, ...]


def check(experiment: Experiment, tell: Callable[[str], None] = lambda _: None) -> Checked:
    """Check data, model, layers, threat, batch, storage, tracking and this machine's resources; writes nothing.

    ``tell`` hears how far the reading of many files has come.
    """
    check_cluster(experiment.workers, experiment.data.decoding_cpus, tell)
    storage = open_place(storage_url(experiment))
    check_room(storage)
    storage.check_writable()
    uri, artifacts = tracking_places(experiment, storage)
    check_tracking(uri, experiment=experiment.tracking.experiment, artifact_root=artifacts)
    dataset = assembly.load_data(experiment, tell)  # last: to read many files takes long
    extra = assembly.build_extra(experiment, dataset.extra)
    model, neurons = check_against(experiment, dataset, extra)
    return Checked(
        dataset,
        extra,
        neurons,
        sum(parameter.numel() for parameter in model.parameters()),
        storage,
        uri,
        artifacts,
        (
            *data_notices(dataset),
            *_notices(experiment),
            *_layer_notices(experiment, model, dataset.shape),
            *_noise_notices(experiment, model, neurons, dataset.shape),
            *_statistics_notices(experiment, model),
        ),
    )


def check_against(
    experiment: Experiment, dataset: Dataset, extra: Extra, rehearsed: set[Decisive] | None = None
) -> tuple[nn.Module, dict[str, int]]:
    """Check all that depends on the data's shape and size; the model, and its layers with their neurons.

    No step is rehearsed of which :func:`what_decides` is among the ``rehearsed``, which it then joins.
    """
    _check_refresh(experiment, steps_per_epoch(len(dataset.train), experiment.training.batch_size, extra))
    _check_threat(experiment, dataset.shape)
    _check_attacks(experiment)
    _check_batch_norm(experiment)
    augment(
        torch.zeros(1, *dataset.shape, dtype=torch.uint8), experiment.data.augment, torch.zeros(1, dtype=torch.int64)
    )
    model = assembly.build_model(experiment, dataset.shape, len(dataset.classes))
    with refusing("model.name", experiment.model.name, "its layers cannot be read"):
        neurons = assembly.count_neurons(experiment, model, dataset.shape)
    known = set() if rehearsed is None else rehearsed
    if (decisive := what_decides(experiment)) not in known:
        rehearse(experiment, model, neurons, dataset.train)
        known.add(decisive)
    assembly.build_stabilizer(experiment, neurons, _CPU)  # refuses settings that cannot work
    return model, neurons


def storage_url(experiment: Experiment) -> str:
    """Where runs are kept.

    The default is ./runs; a submitted Ray job's folder is deleted after it, so there it is ~/distsens/runs.
    """
    return experiment.storage.path if experiment.storage.path is not None else _default_storage()


def _default_storage() -> str:
    return str(Path.home() / "distsens" / "runs") if job_submission_id() else "runs"


def tracking_places(experiment: Experiment, storage: Place) -> tuple[str, str | None]:
    """The MLflow store, and where its artifacts go: null leaves that to a server, or beside an SQLite file.

    Without an address it is an SQLite file in the storage, or, as a bucket cannot hold one, in the default storage.
    """
    given = experiment.tracking.uri
    if given is not None and given != (masked := without_secrets(given)):
        allowed = f"a password or a token stays out of recipes and flags: set {TRACKING_VARIABLE}"
        raise InputError("tracking.uri", masked, allowed)
    uri = given or os.environ.get(TRACKING_VARIABLE)
    if uri is None:
        folder = storage.root if isinstance(storage, LocalPlace) else Path(_default_storage()).absolute()
        uri = f"sqlite:///{folder / 'mlflow.db'}"
    served = uri.startswith(("http://", "https://", "sqlite:"))
    return uri, None if served else f"{storage.url}/artifacts"


def _check_threat(experiment: Experiment, shape: tuple[int, int, int]) -> None:
    threat = experiment.threat
    widest = {"linf": 1.0, "l2": math.sqrt(math.prod(shape)), "l1": float(math.prod(shape))}[threat.norm]
    if threat.eps > widest:
        raise InputError(
            "threat.eps", threat.eps, f"two images are at most {widest:.4g} apart in {threat.norm}, pixels in [0, 1]"
        )


def _check_attacks(experiment: Experiment) -> None:
    if experiment.test.name not in ("auto", "pgd"):
        raise InputError("test.name", experiment.test.name, "auto or pgd: the accuracy is reported as that under PGD")
    training, _, _ = (_checked_attack(experiment, section) for section in ("attack", "validation", "test"))
    name = experiment.attack.name
    if experiment.objective.name == "free_at":
        if name != "auto":
            raise InputError("attack.name", name, "auto: free_at makes its examples from its own backward passes")
        if experiment.training.awp_gamma is not None:
            raise InputError("training.awp_gamma", experiment.training.awp_gamma, "free_at has no second pass for it")
    if experiment.objective.name != "trades":
        return
    if name not in ("auto", "pgd", "fast_fgsm"):
        raise InputError(
            "attack.name", name, "trades needs pgd or fast_fgsm: they take its loss and start beside the image"
        )
    if training.random_start == "none":
        raise InputError(
            "attack.random_start",
            "none",
            "trades needs uniform or normal: its loss has no gradient at the image itself",
        )


def _checked_attack(experiment: Experiment, section: str) -> GradientAttack:
    try:
        if section == "attack":
            attack = assembly.build_training_attack(experiment)
        else:
            attack = assembly.build_attack(experiment, getattr(experiment, section))
    except InputError as error:
        raise InputError(error.field.replace("attack", section, 1), error.value, error.allowed) from None
    if attack.restarts > 1 and attack.random_start == "none":
        raise InputError(f"{section}.restarts", attack.restarts, "without a random start all are equal")
    return attack


def data_notices(dataset: Dataset) -> tuple[str, ...]:
    """What of the data is not used: files that cannot be read, and what else lies there."""
    left_out = dataset.left_out
    if not left_out:
        return dataset.notices
    more = ", ..." if len(left_out) > _FILES_NAMED else ""
    line = f"{len(left_out)} files cannot be read and are left out: {', '.join(left_out[:_FILES_NAMED])}{more}"
    return (line, *dataset.notices)


def _check_batch_norm(experiment: Experiment) -> None:
    how, objective = experiment.training.batch_norm, assembly.build_objective(experiment)
    forwarded = {"adversarial": objective.uses_adversarial, "benign": objective.uses_benign}
    if not forwarded.get(how, True):
        raise InputError(
            "training.batch_norm",
            how,
            f"{experiment.objective.name} has no {how} half to take running statistics from; joint or separate",
        )


def _check_refresh(experiment: Experiment, steps: int) -> None:
    refresh = experiment.stabilize.refresh_steps
    if refresh is not None and refresh > steps:
        raise InputError(
            "stabilize.refresh_steps", refresh, f"at most {steps}, the steps of an epoch, at whose end it is anyhow"
        )


def _statistics_notices(experiment: Experiment, model: nn.Module) -> tuple[str, ...]:
    """Layers of whose statistics we do not know whether the workers share them."""
    names = own_forwards(model)
    if experiment.workers.num == 1 or not experiment.training.sync_batch_norm or not names:
        return ()
    return (
        f"{len(names)} batch-norm layers have a forward of their own ({names[0]}): where it does not call that of "
        "torch, the statistics stay those of each worker, and the number of workers matters",
    )


def _layer_notices(experiment: Experiment, model: nn.Module, shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Which layers are not measured although ``"auto"`` means them: without SNS they need not be."""
    if "auto" not in experiment.stabilize.layers:
        return ()
    missed = unreadable_layers(model, torch.zeros(1, *shape))
    some = ", ".join(missed[:_LAYERS_NAMED]) + (", ..." if len(missed) > _LAYERS_NAMED else "")
    return (
        (f"the sensitivity of {len(missed)} layers is not measured, as no dimension says which image is which: {some}",)
        if missed
        else ()
    )


def _noise_notices(
    experiment: Experiment, model: nn.Module, neurons: dict[str, int], shape: tuple[int, int, int]
) -> tuple[str, ...]:
    """Whether SNS would take for sensitivity what a training forward says differently of equal images."""
    stabilizer = assembly.build_stabilizer(experiment, neurons, _CPU)
    if stabilizer is None:
        return ()
    if experiment.training.batch_norm == "joint":  # else the pairs' share decides of which images statistics are
        stabilizer = Stabilizer(replace(stabilizer.settings, pairs=1.0), neurons)
    state = TrainingState(model, assembly.build_optimizer(experiment, model), None, stabilizer)
    step = assembly.build_training_step(experiment, state, model, tuple(neurons))
    images = torch.rand(_NOISY_PAIRS * stabilizer.settings.every, *shape, generator=torch.Generator().manual_seed(0))
    found = step.unshared_noise(images)
    noisy = [layer for layer, noise in found.items() if noise > _LEAST_NOISE]
    if not noisy:
        return ()
    worst = max(noisy, key=lambda layer: found[layer])
    return (
        f"SNS takes noise for sensitivity: equal images differ in training in {len(noisy)} of {len(found)} layers, "
        f"{worst} the most, by {found[worst]:.1%} of its mean output: pairs do not share what the network draws at "
        "random there, or training.batch_norm normalises them by other images",
    )


def _notices(experiment: Experiment) -> tuple[str, ...]:
    notices = []
    sns = experiment.stabilize
    if sns.weight > 0 and sns.measure == "relative" and sns.warmup_start < 0.1:
        notices.append(
            f"stabilize.warmup_start is {sns.warmup_start}: a relative term from the first steps on has collapsed "
            "small networks to constant outputs; the run stops if that happens"
        )
    if experiment.alarm.action in ("stop", "rollback") and assembly.build_alarm(experiment) is None:
        notices.append(
            f"alarm.action is {experiment.alarm.action}, but none is raised without an adversarial objective "
            "whose attack takes fewer steps than validation's"
        )
    return tuple(notices)
