"""An examination turned into its parts: the attacks by name, the images, and what each image is put through."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from distsens.assembly import data_root
from distsens.attacks import (
    APGD,
    FAB,
    AttackName,
    CarliniWagner,
    DeepFool,
    GradientAttack,
    JudgingAttack,
    Square,
    Threat,
    attack_named,
)
from distsens.data import CORRUPTIONS, SEVERITIES, Dataset, ImageSet, Source, holds_training, load, representatives
from distsens.errors import InputError
from distsens.evaluation import Adaptive, Judgement, LastIterate, Pool, Transfer
from distsens.examination import Examination, JudgedData, SplitName
from distsens.experiment import Experiment, check_step_size
from distsens.sensitivity import Stabilizing

GROUPS = {
    "autoattack": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "autoattack-rand": ("apgd-ce-eot", "apgd-dlr-eot"),
}
_EOT = 20


@dataclass(frozen=True)
class Materials:
    """What some attacks need besides a threat.

    training : of the judged model, if it is a run of ours: what the adaptive attack attacks.
    pool : what the adaptive attack learns the model on; only it needs one.
    source : the model that transferred examples are made on.
    """

    classes: int
    training: Experiment | None
    pool: Pool | None
    source: nn.Module | None


Builder = Callable[[Threat, Examination, Materials], JudgingAttack]


def _gradient(examination: Examination, threat: Threat, name: AttackName, restarts: int) -> LastIterate:
    settings = examination.pgd
    check_step_size("pgd.step_size", settings.step_size, threat.eps)
    return LastIterate(
        attack_named(name, threat, steps=settings.steps, step_size=settings.step_size, restarts=restarts)
    )


def _apgd_ce(threat: Threat, examination: Examination, materials: Materials) -> JudgingAttack:  # noqa: ARG001
    return APGD(threat, loss="ce", restarts=5 if threat.norm == "l1" else 1)


def _apgd_t(threat: Threat, examination: Examination, materials: Materials) -> JudgingAttack:  # noqa: ARG001
    _check_classes("apgd-t", materials, 4)
    return APGD(threat, loss="dlr", targets=_targets(materials, 5 if threat.norm == "l1" else 9))


def _apgd_dlr(threat: Threat, name: str, materials: Materials, eot: int = 1) -> JudgingAttack:
    _check_classes(name, materials, 3)
    return APGD(threat, loss="dlr", eot=eot)


def _check_classes(name: str, materials: Materials, least: int) -> None:
    if materials.classes < least:
        others = "apgd-ce pgd-margin fab-t square"
        allowed = f"its loss (DLR) needs {least} classes or more, and there are {materials.classes}; take {others}"
        raise InputError("attacks", name, allowed)


def _targets(materials: Materials, most: int) -> int:
    return min(most, materials.classes - 1)


def _transfer(threat: Threat, examination: Examination, materials: Materials) -> JudgingAttack:
    if materials.source is None:
        raise InputError("transfer", examination.transfer, "name the model that the examples are made on")
    return Transfer(materials.source, _gradient(examination, threat, "pgd", 1).attack, threat)


def _adaptive(threat: Threat, examination: Examination, materials: Materials) -> JudgingAttack:
    if materials.pool is None:
        raise InputError("attacks", "adaptive", "it needs images beside those that are judged")
    training = materials.training
    sns = training.stabilize if training is not None else Experiment().stabilize
    return Adaptive(
        threat,
        materials.pool,
        layers=sns.layers,
        # Neurons that were chosen at random are those of the training's seed.
        stabilizing=Stabilizing(
            sns.ratio,
            sns.selection,
            sns.distance,
            sns.measure,
            seed=examination.seed if training is None else training.seed,
        ),
    )


# Restarts and targets are those of AutoAttack's "standard" and "rand" (Croce and Hein, ICML 2020; in L1 ICML 2021).
ATTACKS: dict[str, Builder] = {
    "apgd-ce": _apgd_ce,
    "apgd-dlr": lambda threat, _, materials: _apgd_dlr(threat, "apgd-dlr", materials),
    "apgd-t": _apgd_t,
    "apgd-ce-eot": lambda threat, _, __: APGD(threat, loss="ce", eot=_EOT),
    "apgd-dlr-eot": lambda threat, _, materials: _apgd_dlr(threat, "apgd-dlr-eot", materials, _EOT),
    "fab": lambda threat, _, __: FAB(threat, targets=0),
    "fab-t": lambda threat, _, materials: FAB(threat, targets=_targets(materials, 9)),
    "square": lambda threat, _, __: Square(threat),
    "pgd": lambda threat, examination, _: _gradient(examination, threat, "pgd", examination.pgd.restarts),
    "pgd-margin": lambda threat, examination, _: _gradient(examination, threat, "cw_pgd", examination.pgd.restarts),
    "mim": lambda threat, examination, _: _gradient(examination, threat, "mim", 1),
    "cw": lambda threat, _, __: CarliniWagner(threat),
    "deepfool": lambda threat, _, __: DeepFool(threat),
    "transfer": _transfer,
    "adaptive": _adaptive,
}
"""Every attack that judges, by the name that an examination gives it."""


def attack_names(names: Sequence[str]) -> tuple[str, ...]:
    """The attacks that the names stand for, in order, each once."""
    found: list[str] = []
    for name in names:
        if name not in GROUPS and name not in ATTACKS:
            raise InputError("attacks", name, f"allowed are {', '.join((*GROUPS, *ATTACKS))}")
        found += [attack for attack in GROUPS.get(name, (name,)) if attack not in found]
    return tuple(found)


def build_threat(examination: Examination) -> Threat:
    """The ball that examples must lie in."""
    if examination.threat.norm is None or examination.threat.eps is None:
        raise InputError("threat", None, "the model is no run of ours, so name threat.norm and threat.eps")
    return Threat(examination.threat.norm, examination.threat.eps)


def build_attacks(examination: Examination, materials: Materials) -> dict[str, JudgingAttack]:
    """The examination's attacks, by name."""
    threat = build_threat(examination)
    return {name: ATTACKS[name](threat, examination, materials) for name in attack_names(examination.attacks)}


def build_judgement(examination: Examination, materials: Materials) -> Judgement:
    """Everything that each image is put through."""
    threat = build_threat(examination)
    radii = (Threat(threat.norm, eps) for eps in examination.eps_curve)
    return Judgement(
        threat,
        build_attacks(examination, materials),
        curve={ball.eps: (ball, APGD(ball, loss="ce")) for ball in radii},
        corruptions=[(family, severity) for family in families(examination.corruptions) for severity in SEVERITIES],
        seed=examination.seed,
        batch_size=examination.batch_size,
        every_attack=examination.every_attack,
    )


def attack_settings(attack: Any) -> dict[str, Any]:
    """All settings of an attack, or another dataclass, as JSON holds them: its kind and its fields.

    Models and images are left out: who makes them known does so by digest.
    """
    found: dict[str, Any] = {"kind": type(attack).__name__}
    for field in dataclasses.fields(attack):
        value = getattr(attack, field.name)
        if not field.repr or isinstance(value, nn.Module | Pool):
            continue
        if dataclasses.is_dataclass(value):
            value = attack_settings(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, torch.dtype) or callable(value):
            value = getattr(value, "__name__", str(value))
        found[field.name] = value
    return found


def build_probe_attack(examination: Examination) -> GradientAttack:
    """The gradient attack whose gradients the masking diagnostics question."""
    return _gradient(examination, build_threat(examination), "pgd", 1).attack


def families(names: Sequence[str]) -> tuple[str, ...]:
    """The families of corruptions that the names stand for."""
    if tuple(names) == ("all",):
        return tuple(CORRUPTIONS)
    for name in names:
        if name not in CORRUPTIONS:
            raise InputError("corruptions", name, f"all, or some of {', '.join(CORRUPTIONS)}")
    return tuple(names)


def judged_split(wanted: SplitName, dataset: Dataset) -> SplitName:
    """The split of the data set that is judged: where it has no test split, the validation split that it was given."""
    return "validation" if wanted == "test" and len(dataset.test) == 0 and dataset.own_validation else wanted


def chosen_numbers(data: JudgedData, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers, ascending, of those images of a whole split with these labels that ``data.limit`` leaves."""
    if data.limit is None or data.choice == "first":
        return np.arange(len(labels) if data.limit is None else min(data.limit, len(labels)))
    return representatives(labels, data.limit)


def load_judged(
    examination: Examination, training: Experiment | None, tell: Callable[[str], None] = lambda _: None
) -> tuple[Dataset, ImageSet]:
    """The data set, and the chosen images of the split, of which all or those of ``data.images`` are judged."""
    wanted = examination.data
    if wanted.name is None:
        raise InputError("data.name", None, "the model is no run of ours, so name the data set")
    if wanted.classes is not None and wanted.name != "npz":
        raise InputError("data.classes", wanted.classes, "is for data.name npz; others have their own")
    of_training = training if training is not None else Experiment()
    same = training is not None and training.data.name == wanted.name
    root = data_root(of_training.model_copy(update={"data": of_training.data.model_copy(update={"root": wanted.root})}))
    # A folder that was trained on keeps its splits; of anybody else's images none need be held back without a reason.
    judged = not same or (wanted.name == "npz" and isinstance(root, Path) and not holds_training(root))
    needs_pool = "adaptive" in attack_names(examination.attacks)
    holds_out = same or needs_pool or wanted.split != "test"
    try:
        dataset = load(
            wanted.name,
            Source(
                root,
                wanted.download,
                wanted.image_size,
                of_training.data.test_fraction,
                judged=judged,
                classes=wanted.classes,
                tell=tell,
                resize=wanted.resize,
                interpolation=wanted.interpolation or "bilinear",
                without_training=judged and wanted.split == "test" and not needs_pool,
            ),
            validation_fraction=of_training.data.validation_fraction if same else None,
            seed=of_training.seed if same else examination.seed,
            holds_out=holds_out,
        )
    except InputError as error:
        if same or error.field != "data.validation_fraction":
            raise
        reason = "the attack adaptive" if needs_pool else f"the split {wanted.split}"
        raise InputError("data.root", str(root), f"has too few images for {reason}: {error.allowed}") from None
    split: ImageSet = getattr(dataset, judged_split(wanted.split, dataset))
    if len(split) == 0:
        there = [name for name in ("train", "validation", "test") if len(getattr(dataset, name))]
        allowed = f"there are no such images; name {' or '.join(there)} to judge those"
        if there == ["test"]:
            allowed = "the images are not split: all of them are test"
        raise InputError("data.split", wanted.split, allowed)
    if wanted.limit is not None:
        if wanted.limit > len(split):
            raise InputError("data.limit", wanted.limit, f"the {wanted.split} split has {len(split)} images")
        split = split.take(chosen_numbers(wanted, split.labels))
    if odd := [place for place in wanted.images if not 0 <= place < len(split)]:
        raise InputError("data.images", odd[0], f"the images have places 0 to {len(split) - 1}")
    if len(set(wanted.images)) < len(wanted.images):
        raise InputError("data.images", list(wanted.images), "each image once")
    return dataset, split
