"""Corruption error: how a classifier takes common corruptions, compared with a baseline.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
2019, section 4.1, where the baseline is AlexNet and ratios are printed in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from distsens.errors import InputError

ErrorRates = Mapping[str, Sequence[float]]
"""Part of the images classified wrong, in [0, 1]: per family, at each severity."""


def corruption_errors(errors: ErrorRates, baseline_errors: ErrorRates) -> dict[str, float]:
    """``CE_c = sum_s E_sc / sum_s B_sc`` of every family c, over its severities s; 1 is as good as the baseline.

    Parameters
    ----------
    errors : E, of the classifier.
    baseline_errors : B, of the baseline, for the same families and severities.

    Raises
    ------
    InputError : the two differ in families or severities, there are none, a rate lies outside [0, 1], or the baseline
        makes no error on a family.
    """
    _check(errors, baseline_errors)
    return _ratios(errors, baseline_errors, 0.0, 0.0)


def mean_corruption_error(errors: ErrorRates, baseline_errors: ErrorRates) -> float:
    """mCE: the mean of :func:`corruption_errors` over the families."""
    return fmean(corruption_errors(errors, baseline_errors).values())


def relative_corruption_errors(
    errors: ErrorRates, baseline_errors: ErrorRates, clean_error: float, baseline_clean_error: float
) -> dict[str, float]:
    """``sum_s (E_sc - E_clean) / sum_s (B_sc - B_clean)`` of every family c: what corruption adds to the clean error.

    Parameters
    ----------
    errors, baseline_errors : as for :func:`corruption_errors`.
    clean_error, baseline_clean_error : error rates on the images as they are.

    Raises
    ------
    InputError : as for :func:`corruption_errors`, or on a family the baseline is no worse than on clean
        images.
    """
    _check(errors, baseline_errors)
    _check_rates("corruption.clean_error", [clean_error])
    _check_rates("corruption.baseline_clean_error", [baseline_clean_error])
    return _ratios(errors, baseline_errors, clean_error, baseline_clean_error)


def relative_mean_corruption_error(
    errors: ErrorRates, baseline_errors: ErrorRates, clean_error: float, baseline_clean_error: float
) -> float:
    """Relative mCE: the mean of :func:`relative_corruption_errors` over the families."""
    return fmean(relative_corruption_errors(errors, baseline_errors, clean_error, baseline_clean_error).values())


def _ratios(errors: ErrorRates, baseline: ErrorRates, clean: float, baseline_clean: float) -> dict[str, float]:
    ratios = {}
    for family, rates in errors.items():
        # The mean, unlike the sum, is exactly the clean error where every rate is.
        degradation = fmean(baseline[family]) - baseline_clean
        if degradation <= 0.0:
            allowed = f"the baseline must make more errors than {baseline_clean:g} on average, to be divided by"
            raise InputError(f"corruption.baseline.{family}", list(baseline[family]), allowed)
        ratios[family] = (fmean(rates) - clean) / degradation
    return ratios


def _check(errors: ErrorRates, baseline: ErrorRates) -> None:
    if not errors:
        raise InputError("corruption.errors", dict(errors), "must hold one family or more")
    if errors.keys() != baseline.keys():
        missing = sorted(baseline.keys() - errors.keys())
        surplus = sorted(errors.keys() - baseline.keys())
        field, names = ("corruption.errors", missing) if missing else ("corruption.baseline", surplus)
        raise InputError(field, sorted(errors if missing else baseline), f"{', '.join(names)} must be there too")
    for family, rates in errors.items():
        _check_rates(f"corruption.errors.{family}", rates)
        _check_rates(f"corruption.baseline.{family}", baseline[family])
        if len(rates) != len(baseline[family]):
            allowed = f"must have as many severities as the baseline: {len(baseline[family])}"
            raise InputError(f"corruption.errors.{family}", list(rates), allowed)


def _check_rates(field: str, rates: Sequence[float]) -> None:
    if not rates or not all(0.0 <= rate <= 1.0 for rate in rates):
        raise InputError(field, list(rates), "must be error rates in [0, 1], one per severity")
