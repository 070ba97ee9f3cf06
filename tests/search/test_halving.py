"""Who goes on to the next rung."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from distsens.search import goes_on

SCORES = st.lists(st.floats(-1, 1), min_size=1, max_size=30)


def test_the_first_goes_on_and_then_the_best_one_in_so_many() -> None:
    assert goes_on(-1.0, [], 3)
    assert [goes_on(score, [0.1, 0.2, 0.3, 0.4], 2) for score in (0.2, 0.24, 0.26, 0.5)] == [False, False, True, True]


@given(SCORES, st.integers(2, 5))
def test_it_is_the_rule_of_ray_tunes_asha(scores: list[float], reduction: int) -> None:
    asha = AsyncHyperBandScheduler("budget", "score", "max", max_t=100, reduction_factor=reduction)
    for number, score in enumerate(scores):
        trial = SimpleNamespace(trial_id=str(number))
        asha.on_trial_add(None, trial)
        theirs = asha.on_trial_result(None, trial, {"budget": 1, "score": score})
        assert goes_on(score, scores[:number], reduction) == (theirs == TrialScheduler.CONTINUE)
