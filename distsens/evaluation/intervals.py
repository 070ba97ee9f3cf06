"""How far a number can be trusted: intervals of an accuracy over images, and of a value over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from distsens.errors import InputError

# Halving the range of angles, [0, pi / 2], this often leaves nothing of it in float64.
_HALVINGS = 64


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a probability of which ``successes`` of ``trials`` were seen.

    All p that ``|p_hat - p| <= z sqrt(p (1 - p) / n)`` does not rule out, for p_hat = successes / trials and z the
    normal quantile of ``(1 + confidence) / 2``. Wilson, "Probable Inference, the Law of Succession, and Statistical
    Inference", JASA 22 (1927). Unlike p_hat with a symmetric error it stays inside [0, 1] and does not shrink to a
    point where all trials, or none, succeed.

    Returns
    -------
    Its lower and upper end.

    Raises
    ------
    InputError : no trial, more successes than trials, or a confidence outside (0, 1).
    """
    if trials < 1:
        raise InputError("trials", trials, "it must be 1 or more")
    if not 0 <= successes <= trials:
        raise InputError("successes", successes, f"it must be from 0 to the number of trials, {trials}")
    squared = NormalDist().inv_cdf(_upper(confidence)) ** 2
    middle = (successes + squared / 2.0) / (trials + squared)
    failures = trials - successes
    half = math.sqrt(squared * (successes * failures / trials + squared / 4.0)) / (trials + squared)
    # At the ends they are 0 and 1 exactly, but for rounding.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if failures == 0 else middle + half
    return low, high


@dataclass(frozen=True)
class Spread:
    """A value over several seeds.

    mean, std : with n - 1 in the denominator of the variance.
    low, high : Student's t interval of the mean.
    """

    mean: float
    std: float
    low: float
    high: float


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> Spread:
    """Mean, standard deviation and ``mean +- t std / sqrt(n)`` of the values that n seeds gave.

    t is Student's quantile of ``(1 + confidence) / 2`` at n - 1 degrees of freedom. Student, "The Probable Error of a
    Mean", Biometrika 6 (1908).

    Raises
    ------
    InputError : fewer than two values, which have no spread, or a confidence outside (0, 1).
    """
    if len(values) < 2:
        raise InputError("values", list(values), "a spread needs the values of two seeds or more")
    mean, std = statistics.mean(values), statistics.stdev(values)
    half = student_quantile(_upper(confidence), len(values) - 1) * std / math.sqrt(len(values))
    return Spread(mean, std, mean - half, mean + half)


def student_quantile(probability: float, degrees: int) -> float:
    """The t >= 0 below which Student's distribution has this probability, one of [1/2, 1).

    For t = sqrt(degrees) tan(theta) the probability of (-t, t) is a finite sum in theta (Abramowitz and Stegun,
    "Handbook of Mathematical Functions", 26.7.3 and 26.7.4), which rises with theta; halving finds its root.
    """
    wanted = 2.0 * probability - 1.0
    low, high = 0.0, math.pi / 2.0
    for _ in range(_HALVINGS):
        theta = (low + high) / 2.0
        if _central_probability(theta, degrees) < wanted:
            low = theta
        else:
            high = theta
    return math.sqrt(degrees) * math.tan(low)


def _central_probability(theta: float, degrees: int) -> float:
    """``P(|T| <= sqrt(degrees) tan(theta))``."""
    odd = degrees % 2
    cosine = math.cos(theta)
    term, total = cosine if odd else 1.0, 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2.0 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


def _upper(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise InputError("confidence", confidence, "it must lie between 0 and 1")
    return (1.0 + confidence) / 2.0
