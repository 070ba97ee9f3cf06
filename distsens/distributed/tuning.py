"""A sweep in Ray Tune's terms: its space, who draws, who ends trials early, and what a trial needs of the cluster."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from distsens.distributed.ray_internals import KnownRungs
from distsens.experiment import Workers
from distsens.search import Choice, Distribution, Grid, Integers, LogUniform, SweepPlan, Uniform

_SCORE = "score"
_ACCURACIES = ["robust_accuracy", "clean_accuracy"]
_DRIVER_SHARE = 0.001


def param_space(plan: SweepPlan) -> dict[str, Any]:
    """The space as Ray Tune draws from it."""
    return {field: _domain(one) for field, one in plan.space.items()}


def _domain(one: Distribution) -> Any:
    match one:
        case Uniform(low, high):
            return tune.uniform(low, high)
        case LogUniform(low, high):
            return tune.loguniform(low, high)
        case Integers(low, high):
            return tune.randint(low, high + 1)
        case Choice(values):
            return tune.choice(list(values))
        case Grid(values):
            return tune.grid_search(list(values))


def searcher(plan: SweepPlan, at_a_time: int) -> ConcurrencyLimiter | BasicVariantGenerator:
    """Who draws the trials' values, of so many at a time; the experiment's seed decides the draws.

    A population is made whole, and takes turns.
    """
    if plan.sweep.searcher != "tpe":
        # Ray Tune's own max_concurrent_trials says nothing to this one.
        at_once = 0 if plan.sweep.scheduler == "pbt" else at_a_time
        return BasicVariantGenerator(max_concurrent=at_once, random_state=plan.base.seed)
    several = plan.sweep.goal == "front"
    sampler = OptunaSearch(
        metric=_ACCURACIES if several else _SCORE,
        mode=["max"] * len(_ACCURACIES) if several else "max",
        seed=plan.base.seed,
    )
    return ConcurrencyLimiter(sampler, max_concurrent=at_a_time)


def scheduler(plan: SweepPlan) -> TrialScheduler:
    """Who ends trials early, or sends them on from others."""
    sweep = plan.sweep
    if sweep.scheduler == "asha":
        return Halving(
            time_attr="budget",
            metric=_SCORE,
            mode="max",
            grace_period=1,
            max_t=plan.budget(plan.rungs),
            reduction_factor=sweep.reduction,
        )
    if sweep.scheduler == "pbt":
        # Ray's implementation draws from the global generators.
        random.seed(plan.base.seed)
        np.random.seed(plan.base.seed)
        return PopulationBasedTraining(
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
    return list(one.values) if isinstance(one, Choice) else _domain(one)


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


class Halving(KnownRungs):
    """ASHA (Li et al., MLSys 2020) that knows, in a resumed sweep, the scores of trials that ended before.

    Ray Tune does not keep its schedulers' state; each result carries the scores of all rungs of its trial.
    """

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take the scores of the rungs that the trial has done."""
        super().on_trial_add(tune_controller, trial)
        for rung, score in enumerate((trial.last_result or {}).get("scores", ())):
            self.score(trial, rung, score)


def resources(workers: Workers) -> tune.PlacementGroupFactory:
    """What a trial's own actor reserves.

    A single worker is that actor. Several are reserved by Ray Train, all or none of them, so that trials that wait for
    places never hold any; the actor then needs a place beside the sweep's driver and no core.
    """
    if workers.num == 1:
        return tune.PlacementGroupFactory([{"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}])
    return tune.PlacementGroupFactory([{"CPU": 0, f"node:{ray.util.get_node_ip_address()}": _DRIVER_SHARE}])
