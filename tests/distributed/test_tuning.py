"""A sweep's settings as Ray Tune's parts: they stay within the space, and forget nothing of a sweep that is resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from distsens.distributed.tuning import Within, scheduler
from distsens.search import Choice, Integers, LogUniform, SweepPlan, Uniform

RECIPE: dict[str, Any] = {
    "training": {"epochs": 6},
    "search": {
        "stabilize.weight": {"loguniform": [0.1, 10]},
        "stabilize.ratio": {"uniform": [0.05, 0.5]},
        "attack.steps": {"randint": [1, 3]},
        "stabilize.distance": {"choice": ["l1", "l2"]},
    },
    "sweep": {"trials": 50},
}


def test_perturbed_values_stay_within_the_space() -> None:
    within = Within({"a": Uniform(0.0, 1.0), "b": LogUniform(0.1, 10.0), "c": Integers(1, 3), "d": Choice(("x",))})
    assert within({"a": 1.2, "b": 0.08, "c": 3.6, "d": "x"}) == {"a": 1.0, "b": 0.1, "c": 3, "d": "x"}
    assert within({"a": 0.5, "b": 5.0, "c": 2.4, "d": "x"}) == {"a": 0.5, "b": 5.0, "c": 2, "d": "x"}


def _asha(scores: Sequence[Mapping[str, float]]) -> Callable[[str, int, float], str]:
    """What the scheduler decides of a trial that reports a score at a rung."""
    rungs = [{"training.epochs": 1}, {"training.epochs": 2}]
    plan = SweepPlan.parse({**RECIPE, "sweep": {"scheduler": "asha", "reduction": 2, "rungs": rungs}})
    made = scheduler(plan, "sweep", scores)
    return lambda trial, rung, score: made.on_trial_result(
        None, SimpleNamespace(), {"trial": trial, "rung": rung, "score": score}
    )


def test_halving_ends_the_worse_at_a_rung_and_lets_the_better_go_on() -> None:
    decide = _asha([{}, {}, {}])
    assert decide("0", 1, 0.5) == TrialScheduler.CONTINUE
    assert decide("1", 1, 0.4) == TrialScheduler.STOP
    assert decide("2", 1, 0.6) == TrialScheduler.CONTINUE
    assert decide("0", 2, 0.7) == TrialScheduler.CONTINUE
    assert decide("2", 2, 0.6) == TrialScheduler.STOP
    assert decide("0", 3, 0.8) == TrialScheduler.CONTINUE  # it ends by itself


def test_a_halving_that_is_made_anew_knows_the_scores_of_trials_that_ended_before() -> None:
    decide = _asha([{"0": 0.5, "1": 0.4, "4": 0.3}, {"0": 0.7}, {"0": 0.8}])
    assert decide("2", 1, 0.42) == TrialScheduler.CONTINUE
    assert decide("3", 1, 0.35) == TrialScheduler.STOP
    assert decide("2", 2, 0.65) == TrialScheduler.STOP
    assert decide("4", 1, 0.3) == TrialScheduler.CONTINUE, "it was settled before that it goes on"


def test_without_a_scheduler_every_trial_goes_to_the_end() -> None:
    assert type(scheduler(SweepPlan.parse(RECIPE), "sweep", [])) is FIFOScheduler
