"""Everything about a sweep that can be checked before anything is started or written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from distsens import assembly
from distsens.distributed.cluster import check_cluster
from distsens.distributed.preflight import Checked, check, check_against
from distsens.distributed.rehearsal import what_decides
from distsens.errors import InputError
from distsens.search import SweepPlan

_MOST_CHECKED = 64


@dataclass(frozen=True)
class CheckedSweep:
    """What the check found: what each training of a trial was checked to be, and where things will be kept."""

    plan: SweepPlan
    base: Checked

    @property
    def notices(self) -> tuple[str, ...]:
        """What can work and yet deserves a word."""
        seeds = ("search.seed: each seed holds out other validation images, on which its trials are judged",)
        return (*self.base.notices, *(seeds if "seed" in self.plan.space else ()))


def check_sweep(plan: SweepPlan, tell: Callable[[str], None] = lambda _: None) -> CheckedSweep:
    """Check the recipe as a training, and the ends of each searched range and every choice with its data and model."""
    for experiment in (plan.base, plan.champion(plan.first)):
        check_cluster(experiment.workers, experiment.data.decoding_cpus, tell)
    base = check(plan.base, tell)
    rehearsed = {what_decides(plan.base)}
    parts = {f"sweep.rungs.{rung}": plan.experiment(plan.first, rung) for rung in range(1, plan.rungs)}
    for where, experiment in {**parts, "sweep.champion": plan.champion(plan.first)}.items():
        try:
            same = (experiment.data, experiment.seed) == (plan.base.data, plan.base.seed)
            dataset = base.dataset if same else assembly.load_data(experiment, tell)
            check_against(experiment, dataset, base.extra, rehearsed)
        except InputError as error:
            raise InputError(f"{where}.{error.field}", error.value, error.allowed) from None
    for values in _extremes(plan):
        experiment = plan.experiment(values)
        try:
            check_against(experiment, base.dataset, base.extra, rehearsed)
        except InputError as error:
            given = ", ".join(f"{field} {value!r}" for field, value in values.items())
            raise InputError(f"search.{error.field}", error.value, f"{error.allowed} (with {given})") from None
    return CheckedSweep(plan, base)


def _extremes(plan: SweepPlan) -> Iterator[dict[str, Any]]:
    """Values at the ends of all ranges and all choices together; where these are too many, each field by itself."""
    ends = {field: one.extremes for field, one in plan.space.items()}
    together = [
        dict(zip(ends, values, strict=True))
        for values in itertools.islice(itertools.product(*ends.values()), _MOST_CHECKED + 1)
    ]
    if len(together) <= _MOST_CHECKED:
        yield from together
    else:
        yield from ({field: value} for field, values in ends.items() for value in values)
