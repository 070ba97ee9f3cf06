from __future__ import annotations

import time

import pytest
import torch

from distsens.benchmark.rounds import Spread, Timing, median_seconds, ratios, take_turns

_CPU = torch.device("cpu")


def test_contenders_take_turns_and_every_other_round_goes_backwards() -> None:
    runs: list[tuple[str, int]] = []
    contenders = {name: lambda number, name=name: runs.append((name, number)) for name in "ab"}
    timings = take_turns(contenders, 3, _CPU)
    assert runs == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert {name: len(of) for name, of in timings.items()} == {"a": 3, "b": 3}


def test_waiting_takes_seconds_but_no_cpu_seconds() -> None:
    (timing,) = take_turns({"sleeper": lambda _: time.sleep(0.1)}, 1, _CPU)["sleeper"]
    assert timing.seconds >= 0.1
    assert timing.cpu_seconds < 0.05


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine is ten times slower in the second round: medians of each contender alone would say something else.
    timings = {"slow": [Timing(2.0, 6.0), Timing(20.0, 6.0), Timing(4.0, 6.0)]}
    timings |= {"fast": [Timing(1.0, 1.0), Timing(10.0, 1.0), Timing(1.0, 1.0)]}
    assert ratios(timings, "slow", "fast") == Spread(2.0, 2.0, 3.0)
    assert ratios(timings, "slow", "fast", cpu=True) == Spread(6.0, 6.0, 6.0)
    assert median_seconds(timings) == {"slow": 4.0, "fast": 1.0}


@pytest.mark.parametrize(
    ("values", "spread"),
    [([3.0], Spread(3.0, 3.0, 3.0)), ([1.0, 2.0, 3.0, 4.0, 5.0], Spread(3.0, 2.0, 4.0))],
)
def test_a_spread_is_the_median_with_the_quartiles(values: list[float], spread: Spread) -> None:
    assert Spread.of(values) == spread
