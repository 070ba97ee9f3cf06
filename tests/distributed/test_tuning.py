"""A sweep's settings as Ray Tune's parts: they draw within the space, and forget nothing of a sweep that is resumed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.tune.experiment import Experiment
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher, SearchGenerator

from distsens.distributed.tuning import Halving, Within, param_space, scheduler, searcher
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


@dataclass
class Trial:
    """What a scheduler looks at."""

    trial_id: str
    last_result: dict[str, Any] = field(default_factory=dict)


def _drawn_at_random(plan: SweepPlan) -> list[dict[str, Any]]:
    generator = searcher(plan, 20)
    generator.add_configurations([Experiment("e", lambda _: None, config=param_space(plan), num_samples=20)])
    return [generator.next_trial().config for _ in range(20)]


def _drawn_by_tpe(plan: SweepPlan) -> list[dict[str, Any]]:
    sampler = searcher(plan, 20)
    sampler.set_search_properties("score", "max", param_space(plan))
    drawn = []
    for number in range(20):
        drawn.append(sampler.suggest(str(number)))
        sampler.on_trial_complete(str(number), {"score": number / 20})
    return drawn


@pytest.mark.parametrize(("name", "draw"), [("random", _drawn_at_random), ("tpe", _drawn_by_tpe)])
def test_whoever_draws_stays_within_the_space_and_draws_the_same_again(name: str, draw: Any) -> None:
    plan = SweepPlan.parse({**RECIPE, "sweep": {"trials": 20, "searcher": name}})
    drawn = draw(plan)
    assert drawn == draw(plan)
    for values in drawn:
        assert 0.1 <= values["stabilize.weight"] <= 10
        assert 0.05 <= values["stabilize.ratio"] <= 0.5
        assert values["stabilize.distance"] in ("l1", "l2")
        plan.experiment(values)
    assert {values["attack.steps"] for values in drawn} == {1, 2, 3}


@pytest.mark.parametrize("settings", [{"searcher": "random"}, {"searcher": "tpe"}])
def test_no_more_trials_are_drawn_than_may_run_at_a_time(settings: dict[str, Any]) -> None:
    plan = SweepPlan.parse({**RECIPE, "sweep": {"trials": 9, **settings}})
    drawing = searcher(plan, 2)
    if isinstance(drawing, Searcher):
        drawing.set_search_properties("score", "max", param_space(plan))
        drawing = SearchGenerator(drawing)
    drawing.add_configurations([Experiment("e", lambda _: None, config=param_space(plan), num_samples=9)])
    first, second = drawing.next_trial(), drawing.next_trial()
    assert drawing.next_trial() is None
    drawing.on_trial_complete(first.trial_id, {"score": 1.0})
    assert drawing.next_trial() is not None
    assert drawing.next_trial() is None
    assert second is not None


def test_perturbed_values_stay_within_the_space() -> None:
    within = Within({"a": Uniform(0.0, 1.0), "b": LogUniform(0.1, 10.0), "c": Integers(1, 3), "d": Choice(("x",))})
    assert within({"a": 1.2, "b": 0.08, "c": 3.6, "d": "x"}) == {"a": 1.0, "b": 0.1, "c": 3, "d": "x"}
    assert within({"a": 0.5, "b": 5.0, "c": 2.4, "d": "x"}) == {"a": 0.5, "b": 5.0, "c": 2, "d": "x"}


def _halving() -> Halving:
    rungs = [{"training.epochs": 1}, {"training.epochs": 2}]
    plan = SweepPlan.parse({**RECIPE, "sweep": {"scheduler": "asha", "reduction": 2, "rungs": rungs}})
    made = scheduler(plan)
    assert isinstance(made, Halving)
    return made


def _result(plan_budget: int, scores: list[float]) -> dict[str, Any]:
    return {"budget": plan_budget, "score": scores[-1], "scores": scores}


def test_halving_ends_the_worse_at_a_rung_and_lets_the_better_go_on() -> None:
    halving = _halving()
    trials = [Trial(str(number)) for number in range(4)]
    for trial in trials:
        halving.on_trial_add(None, trial)
    assert halving.on_trial_result(None, trials[0], _result(1, [0.5])) == TrialScheduler.CONTINUE
    assert halving.on_trial_result(None, trials[1], _result(1, [0.4])) == TrialScheduler.STOP
    assert halving.on_trial_result(None, trials[2], _result(1, [0.6])) == TrialScheduler.CONTINUE
    assert halving.on_trial_result(None, trials[0], _result(2, [0.5, 0.7])) == TrialScheduler.CONTINUE
    assert halving.on_trial_result(None, trials[2], _result(2, [0.6, 0.6])) == TrialScheduler.STOP
    assert halving.on_trial_result(None, trials[0], _result(4, [0.5, 0.7, 0.8])) == TrialScheduler.STOP  # the end


def test_a_halving_that_is_made_anew_knows_the_scores_of_trials_that_ended_before() -> None:
    halving = _halving()
    halving.on_trial_add(None, Trial("0", _result(4, [0.5, 0.7, 0.8])))
    halving.on_trial_add(None, Trial("1", _result(1, [0.4])))
    new = Trial("2")
    halving.on_trial_add(None, new)
    assert halving.on_trial_result(None, new, _result(1, [0.42])) == TrialScheduler.STOP
    other = Trial("3")
    halving.on_trial_add(None, other)
    assert halving.on_trial_result(None, other, _result(1, [0.6])) == TrialScheduler.CONTINUE
    assert halving.on_trial_result(None, other, _result(2, [0.6, 0.65])) == TrialScheduler.STOP


def test_without_a_scheduler_every_trial_goes_to_the_end() -> None:
    assert isinstance(scheduler(SweepPlan.parse(RECIPE)), FIFOScheduler)
