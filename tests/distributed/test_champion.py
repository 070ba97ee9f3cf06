"""The champion is the best finalist by the sweep's goal, as AutoAttack leaves it."""

from __future__ import annotations

from distsens.distributed.champion import winner_of
from distsens.report.sweep import RungState, TrialState
from distsens.search import Sweep


def finished(number: int, clean: float, robust: float, score: float, autoattack: float | None) -> TrialState:
    rungs = {1: RungState(3, clean, robust, score)}
    return TrialState(f"t{number}", number, {}, "finished", rungs=rungs, autoattack=autoattack)


def test_autoattack_decides_among_the_finalists_and_no_other_can_win() -> None:
    trials = [finished(0, 0.9, 0.7, 0.7, 0.4), finished(1, 0.9, 0.6, 0.6, 0.5), finished(2, 0.9, 0.5, 0.5, None)]
    winner = winner_of(Sweep(), trials)
    assert winner is not None
    assert winner.number == 1


def test_a_finalist_below_the_clean_floor_loses_to_one_above_it_whatever_autoattack_leaves() -> None:
    trials = [finished(0, 0.95, 0.5, 0.5, 0.2), finished(1, 0.8, 0.7, -0.1, 0.6)]
    winner = winner_of(Sweep(clean_floor=0.9), trials)
    assert winner is not None
    assert winner.number == 0


def test_for_a_front_clean_accuracy_counts_as_much() -> None:
    trials = [finished(0, 0.99, 0.5, 0.495, 0.40), finished(1, 0.8, 0.6, 0.48, 0.45)]
    winner = winner_of(Sweep(goal="front"), trials)
    assert winner is not None
    assert winner.number == 0


def test_without_autoattack_the_score_decides_and_without_a_finished_trial_nobody_wins() -> None:
    trials = [finished(0, 0.9, 0.5, 0.5, None), finished(1, 0.9, 0.6, 0.6, None)]
    winner = winner_of(Sweep(), trials)
    assert winner is not None
    assert winner.number == 1
    stopped = TrialState("t9", 9, {}, "stopped", rungs={1: RungState(3, 0.9, 0.9, 0.9)})
    assert winner_of(Sweep(), [stopped]) is None
