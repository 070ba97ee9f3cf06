from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distsens.errors import InputError
from distsens.evaluation import over_seeds, wilson
from distsens.evaluation.intervals import student_quantile


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    trials = draw(st.integers(1, 100_000))
    return draw(st.integers(0, trials)), trials


CONFIDENCES = st.floats(0.01, 0.999)
VALUES = st.lists(st.floats(-100.0, 100.0), min_size=2, max_size=12)


@given(counts(), CONFIDENCES)
def test_wilsons_interval_is_that_of_scipy(seen: tuple[int, int], confidence: float) -> None:
    expected = stats.binomtest(*seen).proportion_ci(confidence, method="wilson")
    assert wilson(*seen, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(counts(), CONFIDENCES)
def test_wilsons_interval_contains_the_estimate_inside_0_and_1(seen: tuple[int, int], confidence: float) -> None:
    successes, trials = seen
    low, high = wilson(successes, trials, confidence)
    assert 0.0 <= low <= successes / trials <= high <= 1.0
    assert low < high


@given(counts(), CONFIDENCES)
def test_failures_have_the_mirrored_interval(seen: tuple[int, int], confidence: float) -> None:
    successes, trials = seen
    low, high = wilson(successes, trials, confidence)
    assert wilson(trials - successes, trials, confidence) == pytest.approx((1.0 - high, 1.0 - low), abs=1e-12)


@given(counts(), CONFIDENCES, st.integers(2, 10))
def test_more_trials_at_the_same_rate_narrow_the_interval(seen: tuple[int, int], confidence: float, times: int) -> None:
    few = wilson(*seen, confidence)
    many = wilson(seen[0] * times, seen[1] * times, confidence)
    assert many[1] - many[0] < few[1] - few[0]


@given(counts(), st.floats(0.01, 0.9))
def test_more_confidence_widens_the_interval(seen: tuple[int, int], confidence: float) -> None:
    narrow, wide = wilson(*seen, confidence), wilson(*seen, confidence + 0.09)
    assert wide[0] <= narrow[0]
    assert wide[1] >= narrow[1]
    assert wide[1] - wide[0] > narrow[1] - narrow[0]


def test_wilsons_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Exactly, by the binomial distribution, on average over all probabilities."""
    trials = 60
    intervals = np.array([wilson(successes, trials) for successes in range(trials + 1)])
    truths = np.linspace(0.005, 0.995, 199)
    covered = [
        stats.binom.pmf(range(trials + 1), trials, p)[(intervals[:, 0] <= p) & (p <= intervals[:, 1])].sum()
        for p in truths
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("degrees", [*range(1, 12), 50, 101, 1000])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.975, 0.995, 0.99999])
def test_students_quantile_is_that_of_scipy(degrees: int, probability: float) -> None:
    expected = stats.t.ppf(probability, degrees)
    assert student_quantile(probability, degrees) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@given(VALUES, CONFIDENCES)
def test_a_spread_is_that_of_numpy_and_scipy(values: list[float], confidence: float) -> None:
    spread = over_seeds(values, confidence)
    mean, std = np.mean(values), np.std(values, ddof=1)
    assert spread.mean == pytest.approx(mean, abs=1e-9)
    assert spread.std == pytest.approx(std, abs=1e-9)
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * std / math.sqrt(len(values))
    assert (spread.low, spread.high) == pytest.approx((mean - half, mean + half), rel=1e-6, abs=1e-7)


def test_equal_values_have_no_spread() -> None:
    spread = over_seeds([0.7, 0.7, 0.7])
    assert (spread.mean, spread.std, spread.low, spread.high) == (0.7, 0.0, 0.7, 0.7)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((0, 0), "trials"),
        ((-1, 5), "successes"),
        ((6, 5), "successes"),
        ((1, 5, 0.0), "confidence"),
        ((1, 5, 1.0), "confidence"),
        ((1, 5, math.nan), "confidence"),
    ],
)
def test_counts_that_cannot_be_are_refused(arguments: tuple[Any, ...], field: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: "):
        wilson(*arguments)


def test_one_seed_has_no_spread() -> None:
    with pytest.raises(InputError, match="two seeds or more"):
        over_seeds([0.7])
