"""Searching experiments: the space, the goal, and what a finished search says."""

from distsens.search.draw import Outcome, draw
from distsens.search.front import Point, hypervolume, pareto_front
from distsens.search.goal import FAILED, meets_floor, score
from distsens.search.halving import goes_on
from distsens.search.importance import importance
from distsens.search.space import Choice, Distribution, Grid, Integers, LogUniform, Space, Uniform, nested, parse_space
from distsens.search.sweep import Sweep, SweepPlan

__all__ = [
    "FAILED",
    "Choice",
    "Distribution",
    "Grid",
    "Integers",
    "LogUniform",
    "Outcome",
    "Point",
    "Space",
    "Sweep",
    "SweepPlan",
    "Uniform",
    "draw",
    "goes_on",
    "hypervolume",
    "importance",
    "meets_floor",
    "nested",
    "pareto_front",
    "parse_space",
    "score",
]
