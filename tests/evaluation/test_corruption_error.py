from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsens.errors import InputError
from distsens.evaluation import (
    corruption_errors,
    mean_corruption_error,
    relative_corruption_errors,
    relative_mean_corruption_error,
)

_BASELINE = {"fog": [0.2, 0.3, 0.4, 0.5, 0.6], "snow": [0.4, 0.5, 0.6, 0.7, 0.8]}
_ERRORS = {"fog": [0.1, 0.1, 0.2, 0.2, 0.4], "snow": [0.3, 0.4, 0.5, 0.6, 0.9]}

_RATES = st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5)
_TABLES = st.fixed_dictionaries(dict.fromkeys(("fog", "snow", "frost"), _RATES))


def test_the_corruption_error_is_the_ratio_of_summed_errors() -> None:
    assert corruption_errors(_ERRORS, _BASELINE) == pytest.approx({"fog": 1.0 / 2.0, "snow": 2.7 / 3.0})
    assert mean_corruption_error(_ERRORS, _BASELINE) == pytest.approx((0.5 + 0.9) / 2)


def test_the_relative_corruption_error_is_the_ratio_of_what_corruption_adds() -> None:
    relative = relative_corruption_errors(_ERRORS, _BASELINE, 0.05, 0.1)
    assert relative == pytest.approx({"fog": 0.75 / 1.5, "snow": 2.45 / 2.5})
    assert relative_mean_corruption_error(_ERRORS, _BASELINE, 0.05, 0.1) == pytest.approx((0.5 + 0.98) / 2)


@given(_TABLES, st.floats(0.0, 0.009))
def test_the_baseline_compared_with_itself_is_one(baseline: dict[str, list[float]], clean: float) -> None:
    assert mean_corruption_error(baseline, baseline) == pytest.approx(1.0)
    assert relative_mean_corruption_error(baseline, baseline, clean, clean) == pytest.approx(1.0)


@given(_TABLES, _TABLES, st.floats(0.0, 1.0))
def test_fewer_errors_everywhere_lower_it_in_proportion(
    errors: dict[str, list[float]], baseline: dict[str, list[float]], factor: float
) -> None:
    fewer = {family: [factor * rate for rate in rates] for family, rates in errors.items()}
    assert mean_corruption_error(fewer, baseline) == pytest.approx(factor * mean_corruption_error(errors, baseline))


@given(_TABLES, _TABLES)
def test_without_clean_errors_the_relative_one_is_the_plain_one(
    errors: dict[str, list[float]], baseline: dict[str, list[float]]
) -> None:
    assert relative_corruption_errors(errors, baseline, 0.0, 0.0) == corruption_errors(errors, baseline)


def test_a_classifier_that_corruption_does_not_touch_has_no_relative_error() -> None:
    errors = {family: [0.3] * 5 for family in _BASELINE}
    assert relative_mean_corruption_error(errors, _BASELINE, 0.3, 0.1) == 0.0


def test_a_missing_family_is_named_on_either_side() -> None:
    fog = {"fog": _ERRORS["fog"]}
    with pytest.raises(InputError, match=r"corruption\.errors: got \['fog'\]; snow must be there too"):
        mean_corruption_error(fog, _BASELINE)
    with pytest.raises(InputError, match=r"corruption\.baseline: got \['fog'\]; snow must be there too"):
        mean_corruption_error(_ERRORS, fog)
    with pytest.raises(InputError, match=r"corruption\.errors: got \{\}; must hold one family or more"):
        mean_corruption_error({}, {})


def test_a_baseline_without_errors_cannot_be_compared_with() -> None:
    flawless = {**_BASELINE, "snow": [0.0] * 5}
    with pytest.raises(InputError, match=r"corruption\.baseline\.snow: .*must make more errors than 0 on average"):
        mean_corruption_error(_ERRORS, flawless)


@pytest.mark.parametrize("clean", [0.1, 0.3])
def test_a_baseline_that_corruption_does_not_touch_cannot_be_compared_with(clean: float) -> None:
    untouched = {**_BASELINE, "fog": [0.1] * 5}
    with pytest.raises(
        InputError, match=rf"corruption\.baseline\.fog: .*must make more errors than {clean} on average"
    ):
        relative_mean_corruption_error(_ERRORS, untouched, 0.05, clean)


def test_both_must_have_the_same_severities() -> None:
    with pytest.raises(InputError, match=r"corruption\.errors\.fog: .*as many severities as the baseline: 5"):
        mean_corruption_error({**_ERRORS, "fog": [0.1, 0.2]}, _BASELINE)


@pytest.mark.parametrize("rates", [[0.1, 1.2], [-0.1], [math.nan], []])
@pytest.mark.parametrize("place", [lambda bad: (bad, _BASELINE), lambda bad: (_ERRORS, bad)])
def test_error_rates_lie_between_none_and_all(
    rates: list[float], place: Callable[[dict[str, list[float]]], tuple[dict[str, list[float]], dict[str, list[float]]]]
) -> None:
    with pytest.raises(InputError, match=r"must be error rates in \[0, 1\]"):
        mean_corruption_error(*place({**_BASELINE, "fog": rates}))


@pytest.mark.parametrize("clean", [(1.5, 0.1), (0.1, -0.5)])
def test_clean_error_rates_do_too(clean: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=r"clean_error: .*must be error rates in \[0, 1\]"):
        relative_mean_corruption_error(_ERRORS, _BASELINE, *clean)
