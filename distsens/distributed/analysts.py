"""Actors that measure shards of images and intervene on them; their number changes nothing of what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor, nn

from distsens.analysis import (
    Analysis,
    Intervened,
    InterventionPlan,
    Measured,
    MeasurementPlan,
    Sight,
    Wanted,
    build_plan,
    correlate,
    intervene,
    look,
    make_pairs,
    match_all,
    measure_images,
    numbers_in,
)
from distsens.attacks import Threat
from distsens.data import as_tensor, to_pixels
from distsens.distributed.examiners import read_split
from distsens.distributed.logs import logged, worker_log
from distsens.distributed.pool import ActorPool
from distsens.evaluation import Subject

Shard = tuple[int, int]


@dataclass(frozen=True)
class AnalystAssignment:
    """What every analyst is told.

    name : of the analysis, for the logs.
    subjects : the models. threat : the ball of the first condition.
    images, labels : object references of the analysed split.
    pairs : reference of the saved twins of the split, (N, C, H, W); None where they are made.
    """

    name: str
    analysis: Analysis
    subjects: tuple[Subject, ...]
    threat: Threat
    shape: tuple[int, int, int]
    classes: int
    images: ray.ObjectRef
    labels: ray.ObjectRef
    pairs: ray.ObjectRef | None


class Analyst:
    """Does one task after another; lives in an actor. It is told its assignment with each, as an examiner is."""

    def __init__(self, run: str, rank: int) -> None:
        self._log = worker_log(run, rank)
        self._desk: _Desk | None = None

    def measure(self, assignment: AnalystAssignment, model: int, numbers: Sequence[int]) -> tuple[Measured, Any]:
        """Measure a shard of a model; beside the sums, the twins that are intervened on, (N, C, H, W) float32."""
        with logged(self._log, "measuring", model=model, first_image=numbers[0], images=len(numbers)):
            found, twins = self._at(assignment).measure(model, numbers)
            wanted = sum(number < assignment.analysis.ablation.images for number in numbers)
            return found, twins[:wanted].numpy().copy()  # not a view, with which all of them would be kept

    def intervene(
        self, assignment: AnalystAssignment, model: int, numbers: Sequence[int], twins: Any, plan: InterventionPlan
    ) -> Intervened:
        """Intervene on a shard of a model's pairs, or on its first ones."""
        with logged(self._log, "intervening", model=model, first_image=numbers[0], images=len(numbers)):
            return self._at(assignment).intervene(model, numbers, twins, plan)

    def look(self, assignment: AnalystAssignment, model: int, wanted: Wanted) -> list[Sight]:
        """See what a model's neurons see."""
        with logged(self._log, "looking", model=model):
            return self._at(assignment).look(model, wanted)

    def match(
        self, assignment: AnalystAssignment, first: int, second: int, layers: Mapping[str, str]
    ) -> dict[str, tuple[Tensor, float]]:
        """Match two models' neurons."""
        with logged(self._log, "matching", model=first, other=second):
            return self._at(assignment).match(first, second, layers)

    def _at(self, assignment: AnalystAssignment) -> _Desk:
        if self._desk is None:
            self._desk = _Desk(assignment)
        return self._desk


class _Desk:
    """An assignment with what it takes; of the models the last one that was asked for stays built."""

    def __init__(self, assignment: AnalystAssignment) -> None:
        self._assignment = assignment
        torch.set_num_threads(assignment.analysis.workers.cpus)
        on_gpu = torch.cuda.is_available() and assignment.analysis.workers.gpus
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._images, self._labels = read_split(assignment.images, assignment.labels)
        self._pairs = None if assignment.pairs is None else as_tensor(ray.get(assignment.pairs))
        self._built: tuple[int, nn.Module, MeasurementPlan] | None = None

    def measure(self, model: int, numbers: Sequence[int]) -> tuple[Measured, Tensor]:
        network, plan = self._model(model)
        images, labels, rows = self._take(numbers)
        pairs = None if self._pairs is None else self._pairs[list(numbers)]
        return measure_images(network, images, labels, rows, plan, pairs)

    def intervene(self, model: int, numbers: Sequence[int], twins: Any, plan: InterventionPlan) -> Intervened:
        network, _ = self._model(model)
        images, labels, _ = self._take(numbers)
        return intervene(network, images, as_tensor(twins)[: len(labels)].to(self._device), labels, plan)

    def look(self, model: int, wanted: Wanted) -> list[Sight]:
        network, plan = self._model(model)
        images, labels, rows = self._take(numbers_in(wanted))
        if self._pairs is None:
            twins = make_pairs(network, images, labels, rows, plan)
        else:
            twins = self._pairs[rows.cpu()].to(self._device)
        return look(network, images, twins, labels, rows, wanted, plan.batch_size)

    def match(self, first: int, second: int, layers: Mapping[str, str]) -> dict[str, tuple[Tensor, float]]:
        other = self._build(second)
        network, plan = self._model(first)
        count = min(self._assignment.analysis.matched_images, len(self._labels))
        images, _, _ = self._take(range(count))
        return match_all(correlate(network, other, layers, images, plan.batch_size))

    def _take(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.as_tensor(np.asarray(numbers, dtype=np.int64))
        return (
            to_pixels(self._images[rows].to(self._device)),
            self._labels[rows].to(self._device),
            rows.to(self._device),
        )

    def _model(self, model: int) -> tuple[nn.Module, MeasurementPlan]:
        if self._built is None or self._built[0] != model:
            self._built = None
            network = self._build(model)
            assignment = self._assignment
            plan = build_plan(assignment.analysis, assignment.threat, network, assignment.classes)
            self._built = (model, network, plan)
        return self._built[1], self._built[2]

    def _build(self, model: int) -> nn.Module:
        assignment = self._assignment
        return assignment.subjects[model].build(assignment.shape, assignment.classes).to(self._device)


class Analysts:
    """A pool of analysts; ``say`` shows a line."""

    def __init__(self, assignment: AnalystAssignment, say: Callable[[str], None]) -> None:
        self._assignment = ray.put(assignment)
        self._pool: ActorPool[Shard] = ActorPool(Analyst, assignment.analysis.workers, assignment.name, say)
        self._twins: dict[Shard, Any] = {}

    def measure(self, shards: Mapping[Shard, Sequence[int]], seconds: float) -> Iterator[tuple[Shard, Measured] | None]:
        """Each (model, shard) and its sums when done, None when for some seconds none was.

        Ray keeps the twins of the images that are intervened on, which are the first.
        """

        def task(shard: Shard) -> Callable[[Any], Any]:
            def begin(analyst: Any) -> Any:
                found, self._twins[shard] = analyst.measure.options(num_returns=2).remote(
                    self._assignment, shard[0], list(shards[shard])
                )
                return found

            return begin

        return self._pool.run({shard: task(shard) for shard in shards}, seconds)

    def intervene(
        self, shards: Mapping[Shard, Sequence[int]], plans: Mapping[int, InterventionPlan], seconds: float
    ) -> Iterator[tuple[Shard, Intervened] | None]:
        """The same of interventions, on the first images of shards that were measured."""
        stored = {model: ray.put(plan) for model, plan in plans.items()}

        def task(shard: Shard) -> Callable[[Any], Any]:
            return lambda analyst: analyst.intervene.remote(
                self._assignment, shard[0], list(shards[shard]), self._twins[shard], stored[shard[0]]
            )

        return self._pool.run({shard: task(shard) for shard in shards}, seconds)

    def look(self, wanted: Mapping[int, Wanted], seconds: float) -> Iterator[tuple[Shard, list[Sight]] | None]:
        """What each model's neurons see, under (model, 0)."""

        def task(model: int) -> Callable[[Any], Any]:
            return lambda analyst: analyst.look.remote(self._assignment, model, wanted[model])

        return self._pool.run({(model, 0): task(model) for model in wanted}, seconds)

    def match(
        self, layers: Mapping[Shard, Mapping[str, str]], seconds: float
    ) -> Iterator[tuple[Shard, dict[str, tuple[Tensor, float]]] | None]:
        """The matches of the neurons of each (first model, second model)."""

        def task(both: Shard) -> Callable[[Any], Any]:
            return lambda analyst: analyst.match.remote(self._assignment, *both, dict(layers[both]))

        return self._pool.run({both: task(both) for both in layers}, seconds)
