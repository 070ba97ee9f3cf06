"""A sweep in Ray Tune's terms: who ends trials early, and what a trial needs of the cluster."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from distsens.distributed.sweep_hooks import Drawing, Population
from distsens.experiment import Workers
from distsens.search import Choice, Distribution, Grid, Integers, LogUniform, SweepPlan, Uniform, goes_on

_SCORE = "score"
_DRIVER_SHARE = 0.001


def searcher(
    name: str, at_a_time: int, population: Sequence[Mapping[str, Any]] | None
) -> ConcurrencyLimiter | BasicVariantGenerator:
    """Who hands out the trials of the sweep of that name, so many at a time.

    Parameters
    ----------
    population : values of all trials at once, for PBT: it takes no other, and they take turns.
    """
    if population is not None:
        return BasicVariantGenerator(points_to_evaluate=[dict(values) for values in population])
    return ConcurrencyLimiter(Drawing(name), max_concurrent=at_a_time)


def scheduler(plan: SweepPlan, name: str, scores: Sequence[Mapping[str, float]]) -> TrialScheduler:
    """Who ends trials early, or sends them on from others, in the sweep of that name.

    Parameters
    ----------
    scores : as :class:`Halving` takes them.
    """
    sweep = plan.sweep
    if sweep.scheduler == "asha":
        return Halving(sweep.reduction, scores)
    if sweep.scheduler == "pbt":
        # Ray's implementation draws from the global generators.
        random.seed(plan.base.seed)
        np.random.seed(plan.base.seed)
        return Population(
            name,
            time_attr="epoch",
            metric=_SCORE,
            mode="max",
            perturbation_interval=sweep.interval,
            hyperparam_mutations={field: _mutation(one) for field, one in plan.space.items()},
            custom_explore_fn=Within(dict(plan.space)),
            log_config=False,
        )
    return FIFOScheduler()


def _mutation(one: Distribution) -> Any:
    """A choice as a list, which is what PBT steps along; any other as a domain."""
    match one:
        case Uniform(low, high):
            return tune.uniform(low, high)
        case LogUniform(low, high):
            return tune.loguniform(low, high)
        case Integers(low, high):
            return tune.randint(low, high + 1)
        case Choice(values) | Grid(values):
            return list(values)


class Within:
    """Keeps what PBT perturbs within the space: its factors know no bounds."""

    def __init__(self, space: Mapping[str, Distribution]) -> None:
        self._space = dict(space)

    def __call__(self, values: dict[str, Any]) -> dict[str, Any]:
        """The same values, those beyond a bound on it, and integers whole."""
        for field, one in self._space.items():
            if isinstance(one, Uniform | LogUniform | Integers):
                inside = min(max(values[field], one.low), one.high)
                values[field] = round(inside) if isinstance(one, Integers) else inside
        return values


class Halving(FIFOScheduler):
    """ASHA, see :func:`goes_on`, that knows the scores of trials of earlier sessions.

    Parameters
    ----------
    scores : by rung, of the trials that have done it and of which it is settled whether they go on, by name.
    """

    def __init__(self, reduction: int, scores: Sequence[Mapping[str, float]]) -> None:
        super().__init__()
        self._reduction, self._scores = reduction, [dict(one) for one in scores]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """Whether a trial that has done a rung goes on; it may tell of the same rung again after a restart."""
        name, rung, score = result["trial"], result["rung"], result[_SCORE]
        others = self._scores[rung - 1]
        if name in others or rung == len(self._scores):
            return TrialScheduler.CONTINUE
        stays = goes_on(score, others.values(), self._reduction)
        others[name] = score
        return TrialScheduler.CONTINUE if stays else TrialScheduler.STOP


def resources(workers: Workers) -> tune.PlacementGroupFactory:
    """What a trial's own actor reserves.

    A single worker is that actor. Several are reserved by Ray Train, all or none of them, so that trials that wait for
    places never hold any; the actor then needs a place beside the sweep's driver and no core.
    """
    if workers.num == 1:
        return tune.PlacementGroupFactory([{"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}])
    return tune.PlacementGroupFactory([{"CPU": 0, f"node:{ray.util.get_node_ip_address()}": _DRIVER_SHARE}])
