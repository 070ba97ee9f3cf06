"""Timing in turns, so that whatever else the machine does falls on all contenders alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """One run: wall-clock seconds, and CPU seconds of this process over all its threads."""

    seconds: float
    cpu_seconds: float


Timings = Mapping[str, list[Timing]]
"""By contender, one timing a round."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: list[float]) -> Spread:
        """Of one value or more."""
        if len(values) == 1:
            return Spread(*values * 3)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(median, low, high)


def take_turns(
    contenders: Mapping[str, Callable[[int], object]], rounds: int, device: torch.device, *, warm_up: bool = True
) -> Timings:
    """Run every contender once a round, given the number of the round, after one run each (of round 0) to warm up.

    Every other round goes backwards, so that nobody always runs on what another has left in the caches.
    """
    for run in contenders.values() if warm_up else ():
        run(0)
    timings: dict[str, list[Timing]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            timings[name].append(_timed(contenders[name], number, device))
    return timings


def ratios(timings: Timings, slow: str, fast: str, *, cpu: bool = False) -> Spread:
    """How many times as long ``slow`` takes as ``fast``, round by round."""
    clock = "cpu_seconds" if cpu else "seconds"
    pairs = zip(timings[slow], timings[fast], strict=True)
    return Spread.of([getattr(one, clock) / max(getattr(other, clock), 1e-9) for one, other in pairs])


def median_seconds(timings: Timings) -> dict[str, float]:
    """Of every contender."""
    return {name: statistics.median(one.seconds for one in runs) for name, runs in timings.items()}


def _timed(run: Callable[[int], object], number: int, device: torch.device) -> Timing:
    _wait(device)
    cpu, began = time.process_time(), time.perf_counter()
    run(number)
    _wait(device)
    return Timing(time.perf_counter() - began, time.process_time() - cpu)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
