"""What a trial is given depends on the plan, its number and what is known, never on who asks, or when."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distsens.search import Outcome, SweepPlan, draw

SEARCH: dict[str, Any] = {
    "stabilize.weight": {"loguniform": [0.1, 10]},
    "stabilize.ratio": {"uniform": [0.05, 0.5]},
    "attack.steps": {"randint": [1, 3]},
    "data.augment": {"choice": [["flip"], ["flip", "crop"]]},
}


def plan(search: dict[str, Any] = SEARCH, **changes: Any) -> SweepPlan:
    return SweepPlan.parse({"search": search, **changes})


def searched(of: SweepPlan, trials: int) -> list[dict[str, Any]]:
    """One trial after the other; the less of SNS, the better."""
    drawn: list[dict[str, Any]] = []
    for number in range(trials):
        outcomes = [Outcome(values, (-values["stabilize.weight"],)) for values in drawn]
        drawn.append(draw(of, number, outcomes))
    return drawn


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_draws_stay_within_the_space_and_are_the_same_again(searcher: str) -> None:
    of = plan(sweep={"searcher": searcher})
    drawn = searched(of, 20)
    assert drawn == searched(of, 20)
    for values in drawn:
        assert list(values) == list(SEARCH)
        assert 0.1 <= values["stabilize.weight"] <= 10
        assert 0.05 <= values["stabilize.ratio"] <= 0.5
        of.experiment(values)
    assert {values["attack.steps"] for values in drawn} == {1, 2, 3}
    assert {values["data.augment"] for values in drawn} == {("flip",), ("flip", "crop")}
    assert drawn != searched(plan(sweep={"searcher": searcher}, seed=1), 20)


def test_at_random_a_trial_depends_on_its_number_alone_and_tpe_learns() -> None:
    at_random, by_tpe = plan(), plan(sweep={"searcher": "tpe"})
    drawn = searched(at_random, 20)
    assert [draw(at_random, number, []) for number in (7, 3)] == [drawn[7], drawn[3]]
    weights = [sum(values["stabilize.weight"] for values in searched(of, 40)[20:]) for of in (at_random, by_tpe)]
    assert weights[1] < weights[0] / 2


def test_tpe_goes_on_from_values_that_were_read_from_json() -> None:
    of = plan(sweep={"searcher": "tpe"})
    drawn = searched(of, 15)
    known = [Outcome(values, (float(number),)) for number, values in enumerate(drawn)]
    read = [Outcome(json.loads(json.dumps(one.values)), one.worth) for one in known]
    assert draw(of, 15, read) == draw(of, 15, known)


def test_tpe_searches_a_front_by_two_numbers() -> None:
    of = plan(sweep={"searcher": "tpe", "goal": "front"})
    assert draw(of, 1, [Outcome(draw(of, 0, []), (0.5, 0.9))]).keys() == SEARCH.keys()


def test_each_draw_is_crossed_with_every_grid() -> None:
    of = plan({**SEARCH, "seed": {"grid": [4, 5]}, "objective.name": {"grid": ["pgd_at", "trades"]}})
    drawn = [draw(of, number, []) for number in range(8)]
    assert [(one["seed"], one["objective.name"]) for one in drawn] == 2 * [
        (4, "pgd_at"),
        (4, "trades"),
        (5, "pgd_at"),
        (5, "trades"),
    ]
    weights = [one["stabilize.weight"] for one in drawn]
    assert weights == 4 * [weights[0]] + 4 * [weights[4]]
    assert weights[0] != weights[4]
