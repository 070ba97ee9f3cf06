"""Actors that measure shards of images and intervene on them; their number changes nothing of what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
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
from distsens.data import as_tensor, representatives, to_pixels
from distsens.distributed.examiners import read_split
from distsens.distributed.logs import logged, worker_log
from distsens.distributed.pool import ActorPool
from distsens.evaluation import Subject

Shard = tuple[int, int]


@dataclass(frozen=True)
class AnalystAssignment:
    """What every analyst is told.

    name : of the analysis, for the logs.
    subjects : the models. layers : of each, the names of those measured. threat : the ball of the first condition.
    numbers : within the whole split, of the images in the analysed one.
    images, labels : object references of the analysed split.
    pairs : reference of the saved twins of the split, (N, C, H, W); None where they are made.
    """

    name: str
    analysis: Analysis
    subjects: tuple[Subject, ...]
    layers: tuple[tuple[str, ...], ...]
    threat: Threat
    shape: tuple[int, int, int]
    classes: int
    numbers: npt.NDArray[np.int64]
    images: ray.ObjectRef
    labels: ray.ObjectRef
    pairs: ray.ObjectRef | None


class Analyst:
    """Does one task after another; lives in an actor. It is told its assignment with each, as an examiner is."""

    def __init__(self, run: str, rank: int) -> None:
        self._log = worker_log(run, rank)
        self._desk: _Desk | None = None

    def measure(self, assignment: AnalystAssignment, model: int, rows: Sequence[int]) -> tuple[Measured, Any]:
        """Measure a shard of a model; beside the sums, the twins that are intervened on, (N, C, H, W) float32."""
        with logged(self._log, "measuring", model=model, first_image=rows[0], images=len(rows)):
            return self._at(assignment).measure(model, rows)

    def intervene(
        self, assignment: AnalystAssignment, model: int, rows: Sequence[int], twins: Any, plan: InterventionPlan
    ) -> Intervened:
        """Intervene on those of a shard of a model's pairs that are chosen for it."""
        with logged(self._log, "intervening", model=model, first_image=rows[0], images=len(rows)):
            return self._at(assignment).intervene(model, rows, twins, plan)

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
        self._intervened = set(representatives(self._labels.numpy(), assignment.analysis.ablation.images).tolist())
        self._pairs = None if assignment.pairs is None else as_tensor(ray.get(assignment.pairs))
        self._built: tuple[int, nn.Module, MeasurementPlan] | None = None

    def measure(self, model: int, rows: Sequence[int]) -> tuple[Measured, Any]:
        network, plan = self._model(model)
        images, labels, numbers = self._take(rows)
        pairs = None if self._pairs is None else self._pairs[list(rows)]
        found, twins = measure_images(network, images, labels, numbers, plan, pairs)
        kept = [place for place, row in enumerate(rows) if row in self._intervened]
        return found, twins[kept].numpy()

    def intervene(self, model: int, rows: Sequence[int], twins: Any, plan: InterventionPlan) -> Intervened:
        network, _ = self._model(model)
        images, labels, _ = self._take(rows)
        return intervene(network, images, as_tensor(twins).to(self._device), labels, plan)

    def look(self, model: int, wanted: Wanted) -> list[Sight]:
        network, plan = self._model(model)
        rows = np.searchsorted(self._assignment.numbers, numbers_in(wanted))
        images, labels, numbers = self._take(rows)
        if self._pairs is None:
            twins = make_pairs(network, images, labels, numbers, plan)
        else:
            twins = self._pairs[rows].to(self._device)
        return look(network, images, twins, labels, numbers, wanted, plan.batch_size)

    def match(self, first: int, second: int, layers: Mapping[str, str]) -> dict[str, tuple[Tensor, float]]:
        other = self._build(second)
        network, plan = self._model(first)
        images, _, _ = self._take(representatives(self._labels.numpy(), self._assignment.analysis.matched_images))
        return match_all(correlate(network, other, layers, images, plan.batch_size))

    def _take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and numbers within the whole split."""
        where = np.asarray(rows, dtype=np.int64)
        return (
            to_pixels(self._images[torch.from_numpy(where)].to(self._device)),
            self._labels[torch.from_numpy(where)].to(self._device),
            torch.from_numpy(self._assignment.numbers[where]).to(self._device),
        )

    def _model(self, model: int) -> tuple[nn.Module, MeasurementPlan]:
        if self._built is None or self._built[0] != model:
            self._built = None
            network = self._build(model)
            assignment = self._assignment
            plan = build_plan(assignment.analysis, assignment.threat, assignment.layers[model], assignment.classes)
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

        Ray keeps the twins of the images that are intervened on.
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
        """The same of interventions, on some images of shards that were measured."""
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
