from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from distsens.training import LearningRate, ramp

SCHEDULES = ("onecycle", "cosine", "piecewise", "constant")


def of_torch(steps: int, peak: float, scheduler: Callable[[torch.optim.Optimizer], LRScheduler]) -> list[float]:
    """Learning rates of the steps by one of PyTorch's schedulers."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    schedule = scheduler(optimizer)
    rates = []
    for step in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if step < steps - 1:
            schedule.step()
    return rates


def rates(schedule: LearningRate) -> list[float]:
    return [schedule.at(step) for step in range(schedule.steps)]


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.3), (57, 0.3), (100, 0.25), (40, 0.9), (200, 0.011)])
def test_onecycle_is_that_of_pytorch(steps: int, warmup: float) -> None:
    expected = of_torch(steps, 0.2, lambda o: OneCycleLR(o, max_lr=0.2, total_steps=steps, pct_start=warmup))
    assert rates(LearningRate("onecycle", 0.2, steps, warmup)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_cosine_without_warmup_is_that_of_pytorch(steps: int) -> None:
    expected = of_torch(steps, 0.3, lambda o: CosineAnnealingLR(o, T_max=steps))
    assert rates(LearningRate("cosine", 0.3, steps)) == pytest.approx(expected, rel=1e-9)


def test_piecewise_is_pytorchs_multistep() -> None:
    expected = of_torch(40, 0.1, lambda o: MultiStepLR(o, milestones=[20, 30], gamma=0.2))
    assert rates(LearningRate("piecewise", 0.1, 40, 0.0, (0.5, 0.75), 0.2)) == pytest.approx(expected, rel=1e-9)


def test_constant_stays() -> None:
    assert rates(LearningRate("constant", 0.1, 5)) == [0.1] * 5


@pytest.mark.parametrize("schedule", ["cosine", "piecewise", "constant"])
def test_the_rate_rises_linearly_over_the_warmup(schedule: str) -> None:
    found = rates(LearningRate(schedule, 1.0, 20, 0.2, (0.5,), 0.1))
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@given(
    schedule=st.sampled_from(SCHEDULES),
    steps=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
    peak=st.floats(1e-4, 10),
)
def test_the_rate_is_positive_never_above_its_peak_and_falls_after_the_warmup(
    schedule: str, steps: int, warmup: float, peak: float
) -> None:
    found = rates(LearningRate(schedule, peak, steps, warmup, (0.5, 0.75), 0.1))
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in found)
    after = found[math.ceil(warmup * steps) :]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(after))


FRACTIONS = st.floats(0, 1)


@given(steps=st.integers(1, 500), start=FRACTIONS, end=FRACTIONS)
def test_a_ramp_never_falls_and_stays_between_0_and_1(steps: int, start: float, end: float) -> None:
    assume(start <= end)
    values = [ramp(step, steps, start, end) for step in range(steps + 1)]
    assert all(0 <= value <= 1 for value in values)
    assert values == sorted(values)
    assert values[-1] == 1.0
    assert all(
        value == (1 if step / steps >= end else 0)
        for step, value in enumerate(values)
        if not start < step / steps < end
    )


def test_a_ramp_is_linear_between_its_ends() -> None:
    assert [ramp(step, 10, 0.2, 0.6) for step in (2, 3, 4, 5, 6)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
