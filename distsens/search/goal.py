"""What a sweep looks for, as one number that schedulers and searchers can rank trials by."""

from __future__ import annotations

from distsens.search.front import Point
from distsens.search.sweep import Sweep

FAILED = -1.0
"""Score of a trial that failed: below any other."""


def meets_floor(sweep: Sweep, point: Point) -> bool:
    """Whether clean accuracy is high enough; for the goal ``front`` any is."""
    return sweep.goal == "front" or point.clean >= sweep.clean_floor


def score(sweep: Sweep, point: Point, *, last_rung: bool) -> float:
    """Higher is better.

    Goal ``robust``: robust accuracy; where clean accuracy is below the floor, how far below (negative), so that every
    trial above the floor ranks before every one below it. A short training may well be below what a whole one reaches,
    so the floor counts in the last rung alone.

    Goal ``front``: clean times robust accuracy, the hypervolume of the trial alone.
    """
    if sweep.goal == "front":
        return point.clean * point.robust
    if last_rung and not meets_floor(sweep, point):
        return point.clean - sweep.clean_floor
    return point.robust
