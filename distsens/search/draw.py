"""The values of a sweep's trials, one after another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from distsens.randomness import sample_keys
from distsens.search.space import Choice, Distribution, Grid, Integers, LogUniform, Uniform
from distsens.search.sweep import SweepPlan

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_SEEDS = 2**32


@dataclass(frozen=True)
class Outcome:
    """What a trial that has ended was worth: its values, and what is searched for, both accuracies or the score."""

    values: Mapping[str, Any]
    worth: tuple[float, ...]


def draw(plan: SweepPlan, number: int, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The values of the trial of this number, by field.

    They depend on the plan, the number and, where ``tpe`` searches, on the outcomes alone: a sweep that was interrupted
    draws what it would have drawn. Each draw is crossed with every grid, whose last field changes fastest.

    Parameters
    ----------
    number : from 0 on.
    outcomes : of the trials that have ended, in the order of their numbers.
    """
    import optuna
    from optuna.samplers import RandomSampler, TPESampler

    grids = {field: one for field, one in plan.space.items() if isinstance(one, Grid)}
    sample, point = divmod(number, math.prod(len(one.values) for one in grids.values()))
    drawn: dict[str, Any] = {}
    for field, grid in reversed(grids.items()):
        point, index = divmod(point, len(grid.values))
        drawn[field] = grid.values[index]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    others = {field: _distribution(one) for field, one in plan.space.items() if field not in grids}
    seed = int(sample_keys(torch.tensor([sample]), plan.base.seed, "search")) % _SEEDS
    tpe = plan.sweep.searcher == "tpe"
    sampler = TPESampler(seed=seed) if tpe else RandomSampler(seed=seed)
    # A choice is searched by its place among the choices: Optuna knows no lists.
    study = optuna.create_study(directions=["maximize"] * (2 if plan.sweep.goal == "front" else 1), sampler=sampler)
    for one in outcomes if tpe else ():
        params = {field: _index(plan.space[field], one.values[field]) for field in others}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=others, values=list(one.worth)))
    found = study.ask(others).params
    values = {field: _value(plan.space[field], found[field]) for field in others} | drawn
    return {field: values[field] for field in plan.space}


def _distribution(one: Distribution) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match one:
        case Uniform(low, high):
            return FloatDistribution(low, high)
        case LogUniform(low, high):
            return FloatDistribution(low, high, log=True)
        case Integers(low, high):
            return IntDistribution(low, high)
        case Choice(values) | Grid(values):
            return CategoricalDistribution(range(len(values)))


def _index(one: Distribution, value: Any) -> Any:
    return [*map(repr, one.values)].index(repr(_plain(value))) if isinstance(one, Choice) else value


def _value(one: Distribution, found: Any) -> Any:
    return one.values[found] if isinstance(one, Choice) else found


def _plain(value: Any) -> Any:
    """As it was given: JSON makes lists of tuples."""
    return tuple(value) if isinstance(value, list) else value
