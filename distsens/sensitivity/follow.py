"""Sensitive neurons over time and across conditions: which stay, which are born, how much two rankings agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


def jaccard(first: Tensor, second: Tensor) -> float:
    """Common members over all members of two sets of neurons, each (k,) without repetition; 1 for two empty sets."""
    common = int(torch.isin(first, second).sum())
    union = len(first) + len(second) - common
    return common / union if union else 1.0


def chance_jaccard(neurons: int, first: int, second: int) -> float:
    """What :func:`jaccard` of two random sets of these sizes comes to: what an agreement has to be compared with.

    The mean of ``c / (a + b - c)`` over the common part ``c``, which is hypergeometric.
    """
    if first + second == 0:
        return 1.0
    total = 0.0
    for common in range(max(0, first + second - neurons), min(first, second) + 1):
        ways = math.comb(first, common) * math.comb(neurons - first, second - common)
        total += ways / math.comb(neurons, second) * common / (first + second - common)
    return total


@dataclass(frozen=True)
class Turnover:
    """What became of a set of sensitive neurons from one moment to the next, as numbers of neurons, ascending."""

    born: Tensor
    died: Tensor
    kept: Tensor


def turnover(sets: Sequence[Tensor]) -> list[Turnover]:
    """Births and deaths between each two neighbours of a sequence of sets, (k,) each."""
    return [
        Turnover(
            after[~torch.isin(after, before)].sort().values,
            before[~torch.isin(before, after)].sort().values,
            after[torch.isin(after, before)].sort().values,
        )
        for before, after in pairwise(sets)
    ]


def ranks(values: Tensor) -> Tensor:
    """Ranks (n,) in float64 of (n,) numbers, from 1; equal numbers share the mean of their ranks."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    middles: Tensor = ends - (counts.double() - 1.0) / 2.0
    return middles[inverse]


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rho of two sets of numbers, (n,) each: Pearson's correlation of their ranks.

    Spearman, "The Proof and Measurement of Association between Two Things", American Journal of Psychology 15 (1904).
    NaN where one of them is constant, or there are fewer than two.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"a correlation needs equally many numbers: {tuple(first.shape)}, {tuple(second.shape)}")
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    size = (a.square().sum() * b.square().sum()).sqrt()
    return float((a * b).sum() / size) if len(a) > 1 and size > 0 else float("nan")
