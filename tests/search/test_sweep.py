"""A sweep is a recipe with two more sections, and its trials are the recipe with their values in it."""

from __future__ import annotations

from typing import Any

import pytest

from distsens.errors import InputError
from distsens.experiment import merge
from distsens.search import FAILED, Point, Sweep, SweepPlan, score

RECIPE: dict[str, Any] = {
    "data": {"name": "digits"},
    "training": {"epochs": 6},
    "search": {"stabilize.weight": {"loguniform": [0.1, 10]}},
    "sweep": {
        "trials": 4,
        "scheduler": "asha",
        "rungs": [{"training.epochs": 2, "attack": {"steps": 3}}, {"training.epochs": 4}],
        "champion": {"training.epochs": 20},
    },
}


def test_each_rung_changes_the_recipe_and_the_last_is_the_recipe_itself() -> None:
    plan = SweepPlan.parse(RECIPE)
    experiments = [plan.experiment({"stabilize.weight": 0.7}, rung) for rung in (1, 2, 3)]
    assert [one.training.epochs for one in experiments] == [2, 4, 6]
    assert [one.attack.steps for one in experiments] == [3, 10, 10]
    assert {one.stabilize.weight for one in experiments} == {0.7}
    assert plan.experiment({"stabilize.weight": 0.7}) == experiments[-1]
    assert plan.champion({"stabilize.weight": 0.7}).training.epochs == 20


def test_grids_are_crossed_with_the_draws() -> None:
    search = {"stabilize.weight": {"loguniform": [0.1, 10]}, "seed": {"grid": [0, 1, 2]}}
    assert SweepPlan.parse({"search": search, "sweep": {"trials": 4}}).total == 12
    grids = {"threat.eps": {"grid": [0.1, 0.2]}, "seed": {"grid": [0, 1, 2]}}
    assert SweepPlan.parse({"search": grids, "sweep": {"searcher": "grid"}}).total == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sweep": {"trials": 0}}, "sweep.trials: got 0"),
        ({"sweep": {"patience": 2}}, "sweep.patience: got 2; there is no such field"),
        ({"sweep": 3}, "sweep: got 3; it must hold fields"),
        ({"sweep": {"scheduler": "none"}}, "sweep.scheduler: got 'none'; only asha has rungs"),
        ({"sweep": {"rungs": []}}, "sweep.rungs: got []; asha needs at least one"),
        ({"sweep": {"rungs": [{"training.epochs": 0}]}}, "sweep.rungs.1.training.epochs: got 0"),
        ({"sweep": {"rungs": [{"training.epoch": 1}]}}, "sweep.rungs.1.training.epoch: got 1; there is no such field"),
        ({"sweep": {"rungs": [{"stabilize.weight": 1}]}}, "it is searched, so it cannot be changed here"),
        ({"sweep": {"rungs": [{"workers.num": 1}]}}, "it is the same for the whole sweep"),
        ({"sweep": {"champion": {"stabilize.weight": 3}}}, "sweep.champion: got 'stabilize.weight'; it is searched"),
        ({"search": {"seed": {"grid": [1, 2]}}, "sweep": {"searcher": "grid"}}, "takes grids alone"),
        ({"search": {"seed": {"grid": [1, 2]}}, "sweep": {"searcher": "tpe"}}, "tpe draws by itself"),
        ({"sweep": {"scheduler": "pbt", "rungs": [], "interval": 6}}, "sweep.interval: got 6; below the 6 epochs"),
        ({"sweep": {"scheduler": "pbt", "rungs": [], "trials": 1}}, "pbt needs a population"),
        ({"sweep": {"scheduler": "pbt", "rungs": [], "concurrent": 2}}, "pbt makes a whole population"),
        (
            {"sweep": {"scheduler": "pbt", "rungs": []}, "data": {"decoding_cpus": 1}},
            "data.decoding_cpus: got 1; 0 under pbt",
        ),
        ({"sweep": {"scheduler": "pbt", "rungs": [], "searcher": "tpe"}}, "pbt draws its first values at random"),
        (
            {"sweep": {"scheduler": "pbt", "rungs": []}, "search": {"model.name": {"choice": ["small_cnn", "lenet5"]}}},
            "search: got 'model.name'; pbt goes on with other weights",
        ),
        ({"training": {"epochs": 0}}, "training.epochs: got 0"),
    ],
)
def test_what_cannot_be_swept_is_refused_by_its_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        SweepPlan.parse(merge(RECIPE, changes))
    assert said in str(refused.value)


def test_every_trial_above_the_clean_floor_ranks_before_every_one_below_it() -> None:
    sweep = Sweep(clean_floor=0.9)
    above = score(sweep, Point(0.9, 0.0), last_rung=True)
    below = score(sweep, Point(0.89, 0.8), last_rung=True)
    further = score(sweep, Point(0.5, 0.5), last_rung=True)
    assert above > below > further > FAILED
    assert score(sweep, Point(0.5, 0.4), last_rung=False) == 0.4


def test_for_a_front_a_trial_is_worth_the_area_that_it_dominates() -> None:
    assert score(Sweep(goal="front"), Point(0.5, 0.4), last_rung=True) == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["team/model", "a:b", "", " ", "..", "/"])
def test_a_name_that_mlflow_registers_no_model_under_is_refused_before_anything_is_trained(name: str) -> None:
    with pytest.raises(InputError, match=r"^sweep\.registered_name: "):
        SweepPlan.parse({**RECIPE, "sweep": {**RECIPE["sweep"], "registered_name": name}})
