"""What changes over training, as pure functions of the step: a resumed run needs no state to continue them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_ONECYCLE_START = 1 / 25
_ONECYCLE_END = 1 / 25e4


@dataclass(frozen=True)
class LearningRate:
    """Learning rate of each of ``steps`` steps.

    ``"onecycle"`` (Smith and Topin, 2019) rises on a half cosine from peak / 25 over the ``warmup`` part and falls on
    one to peak / 250000. The others rise linearly over the ``warmup`` part, and then ``"cosine"`` falls on a half
    cosine to 0, ``"piecewise"`` is multiplied by ``drop`` at each milestone (parts of all training) and
    ``"constant"`` stays.
    """

    schedule: Literal["onecycle", "cosine", "piecewise", "constant"]
    peak: float
    steps: int
    warmup: float = 0.0
    milestones: Sequence[float] = ()
    drop: float = 0.1

    def at(self, step: int) -> float:
        """Learning rate of step 0, 1, ..., steps - 1."""
        if self.schedule == "onecycle":
            top = max(self.warmup * self.steps - 1.0, 0.0)
            if step <= top:
                return self.peak * _half_cosine(_ONECYCLE_START, 1.0, step / top if top else 1.0)
            return self.peak * _half_cosine(1.0, _ONECYCLE_END, (step - top) / max(self.steps - 1.0 - top, 1.0))
        rise = self.warmup * self.steps
        if step < rise:
            return self.peak * (step + 1) / (rise + 1)
        match self.schedule:
            case "cosine":
                return self.peak * _half_cosine(1.0, 0.0, (step - rise) / (self.steps - rise))
            case "piecewise":
                return self.peak * self.drop ** sum(step >= part * self.steps for part in self.milestones)
            case "constant":
                return self.peak


def ramp(step: int, steps: int, start: float, end: float) -> float:
    """0 up to the part ``start`` of the steps, 1 from the part ``end`` on, linear between."""
    progress = step / steps
    if progress >= end:
        return 1.0
    return max(0.0, (progress - start) / (end - start)) if end > start else 0.0


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
