"""Measure some images of one model under several conditions: what one worker does with one shard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distsens.attacks import GradientAttack, attack_view
from distsens.errors import InputError
from distsens.logits import NO_CLASS, predictions
from distsens.precision import full_float32
from distsens.randomness import sample_keys
from distsens.sensitivity import (
    ActivationProbe,
    NoiseNorm,
    PairValues,
    SharedNoise,
    StatisticsMeter,
    TopImages,
    pair_noise,
    pair_values,
    same_norm_noise,
)

NOISE = "noise"
CLEAN = "clean"
SAVED = "saved pairs"


@dataclass(frozen=True)
class MeasurementPlan:
    """What is measured.

    attacks : conditions by name; the first one's examples are the pairs of all else. Empty where pairs are given.
    norm : in which the noise is as large as the perturbation of the first condition.
    layers : names.
    classes : number of classes that the first condition is also measured in, one by one; 0 for none.
    seed : random starts and noise depend on it, the attack's name and the image's number alone.
    batch_size : pairs at a time; memory grows with it, not with the images.
    kept_images : of each neuron, how many images that activate or change it most are kept.
    """

    attacks: Mapping[str, GradientAttack]
    norm: NoiseNorm
    layers: tuple[str, ...]
    classes: int
    seed: int = 0
    batch_size: int = 32
    kept_images: int = 4

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of all conditions, noise last."""
        return (*(self.attacks or (SAVED,)), NOISE)


@dataclass
class Measured:
    """Sums over images; those of disjoint shards are merged by addition, in the order of the shards.

    meters : statistics by condition, of which ``noise`` is the floor.
    correct : images classified right, ``clean`` and, by condition, attacked and clean both.
    flipped : by condition, images that are taken for something else than without it.
    distance : by condition, the sum of the L2 norms of the perturbations.
    activated, changed : the images with the largest mean output of each neuron, and with the largest difference under
        the first condition.
    attack_seconds, measure_seconds : what making the examples took, and reading the neurons of all conditions.
    """

    images: int
    meters: dict[str, StatisticsMeter]
    correct: dict[str, int]
    flipped: dict[str, int]
    distance: dict[str, float]
    activated: TopImages
    changed: TopImages
    attack_seconds: float = 0.0
    measure_seconds: float = 0.0

    def merge(self, other: Measured) -> None:
        """Add another shard's sums."""
        self.images += other.images
        for name, meter in other.meters.items():
            self.meters[name].merge(meter)
        for mine, theirs in ((self.correct, other.correct), (self.flipped, other.flipped)):
            for name, count in theirs.items():
                mine[name] += count
        for name, distance in other.distance.items():
            self.distance[name] += distance
        self.activated.merge(other.activated)
        self.changed.merge(other.changed)
        self.attack_seconds += other.attack_seconds
        self.measure_seconds += other.measure_seconds


@dataclass(frozen=True)
class _Twins:
    """A batch of images under every condition, by name; the first is what everything else goes by."""

    by_condition: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


@full_float32()
def measure_images(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    numbers: Tensor,
    plan: MeasurementPlan,
    pairs: Tensor | None = None,
) -> tuple[Measured, Tensor]:
    """Measure images (N, C, H, W) in [0, 1]; also their twins under the first condition, (N, C, H, W) on the CPU.

    Parameters
    ----------
    model : any classifier of [0, 1] images on their device; judged in float32 and eval mode, left as it was.
    labels, numbers : (N,) classes, and the images' numbers in the split, by which their random numbers go.
    pairs : the twins, where they need not be made.

    Raises
    ------
    InputError : what the model returns is not logits, or these are not finite: means would say nothing.
    """
    total = _empty(plan)
    made = []
    for rows in torch.arange(len(images)).split(plan.batch_size):
        x, y, n = images[rows], labels[rows], numbers[rows]
        twins = _twins(model, x, y, n, plan, None if pairs is None else pairs[rows])
        _measure(total, model, x, y, n, twins, plan)
        made.append(twins.by_condition[plan.conditions[0]].cpu())
    return total, torch.cat(made)


@full_float32()
def make_pairs(model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, plan: MeasurementPlan) -> Tensor:
    """The twins under the first condition alone, those that :func:`measure_images` makes: (N, C, H, W)."""
    name, attack = next(iter(plan.attacks.items()))
    return torch.cat(
        [
            attack(model, images[rows], labels[rows], keys=_keys(numbers[rows], plan, name))
            for rows in torch.arange(len(images)).split(plan.batch_size)
        ]
    )


def _empty(plan: MeasurementPlan) -> Measured:
    zeros = dict.fromkeys(plan.conditions, 0)
    return Measured(
        0,
        {name: StatisticsMeter(0 if position else plan.classes) for position, name in enumerate(plan.conditions)},
        {CLEAN: 0, **zeros},
        dict(zeros),
        dict.fromkeys(plan.conditions, 0.0),
        TopImages(plan.kept_images),
        TopImages(plan.kept_images),
    )


def _keys(numbers: Tensor, plan: MeasurementPlan, name: str) -> Tensor:
    return sample_keys(numbers, plan.seed, "analyze", name)


def _twins(
    model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, plan: MeasurementPlan, pairs: Tensor | None
) -> _Twins:
    began = time.perf_counter()
    if pairs is not None:
        twins = {SAVED: pairs.to(images.device)}
    else:
        twins = {
            name: attack(model, images, labels, keys=_keys(numbers, plan, name))
            for name, attack in plan.attacks.items()
        }
    seconds = time.perf_counter() - began
    first = next(iter(twins.values()))
    noise = same_norm_noise(images, first, plan.norm, _keys(numbers, plan, NOISE))
    return _Twins({**twins, NOISE: noise}, seconds)


def _measure(
    total: Measured,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    numbers: Tensor,
    twins: _Twins,
    plan: MeasurementPlan,
) -> None:
    began = time.perf_counter()
    names = list(twins.by_condition)

    def read(_: str, outputs: Tensor) -> list[PairValues]:
        benign, *others = outputs.chunk(1 + len(names))
        return pair_values(benign, *others)

    probe = ActivationProbe(model, plan.layers, read=read)
    noise = SharedNoise(model, pair_noise(len(images), len(names)))
    with probe, attack_view(model) as logits_of, torch.no_grad(), noise:  # the view must see that there are hooks
        logits = logits_of(torch.cat([images, *twins.by_condition.values()]))
    taken_for = [predictions(part) for part in logits.chunk(1 + len(names))]
    if (lost := torch.stack(taken_for).eq(NO_CLASS).any(0)).any():
        allowed = f"neurons are measured on finite ones; those of image {int(numbers[lost][0])} or its twin are not"
        raise InputError("model", "logits that are NaN or infinite", allowed)
    right = taken_for[0] == labels
    total.images += len(images)
    total.correct[CLEAN] += int(right.sum())
    for position, (name, twin) in enumerate(twins.by_condition.items()):
        total.meters[name].add({layer: values[position] for layer, values in probe.outputs.items()}, labels)
        total.correct[name] += int((right & (taken_for[1 + position] == labels)).sum())
        total.flipped[name] += int((taken_for[1 + position] != taken_for[0]).sum())
        change = (twin - images).flatten(1).double()
        total.distance[name] += float(torch.linalg.vector_norm(change, dim=1).sum())
    total.activated.update({layer: values[0].output for layer, values in probe.outputs.items()}, numbers)
    total.changed.update({layer: values[0].difference for layer, values in probe.outputs.items()}, numbers)
    total.attack_seconds += twins.seconds
    total.measure_seconds += time.perf_counter() - began
