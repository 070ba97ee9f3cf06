"""Clean and robust accuracy together: the Pareto front, and how much it covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """Accuracies of a trial, each in [0, 1]."""

    clean: float
    robust: float

    def dominates(self, other: Point) -> bool:
        """Whether it is nowhere worse, and somewhere better."""
        return self != other and self.clean >= other.clean and self.robust >= other.robust


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Positions of the points that none dominates, by rising clean accuracy; of equal points the first."""
    best: list[int] = []
    # By falling clean accuracy: a point is on the front if it is more robust than all before it.
    for position in sorted(range(len(points)), key=lambda i: (-points[i].clean, -points[i].robust, i)):
        if not best or points[position].robust > points[best[-1]].robust:
            best.append(position)
    return best[::-1]


def hypervolume(points: Sequence[Point]) -> float:
    """Area, in [0, 1], of what the points dominate above no accuracy at all (0, 0)."""
    area, robust = 0.0, 0.0
    for position in reversed(pareto_front(points)):
        area += points[position].clean * (points[position].robust - robust)
        robust = points[position].robust
    return area
