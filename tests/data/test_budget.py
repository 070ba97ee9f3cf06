"""Threads that share a budget never hold more of it together, and all of them come to their turn."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from distsens.data.budget import Budget


@given(st.integers(1, 20), st.lists(st.integers(0, 40), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_no_more_is_held_than_there_is(most: int, wanted: list[int]) -> None:
    budget, lock, held = Budget(most), threading.Lock(), [0]
    highest = [0]

    def take(part: int) -> None:
        with budget.taking(part):
            with lock:
                held[0] += min(part, most)
                highest[0] = max(highest[0], held[0])
            time.sleep(0.0005)  # for others to come, who would be too many
            with lock:
                held[0] -= min(part, most)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, wanted))
    assert highest[0] <= most
    with budget.taking(most):  # all of it is free again
        assert held == [0]


def test_who_wants_more_than_is_left_waits_for_it() -> None:
    budget, entered = Budget(3), threading.Event()

    def take() -> None:
        with budget.taking(2):
            entered.set()

    with budget.taking(2):
        other = threading.Thread(target=take)
        other.start()
        assert not entered.wait(0.1)
    other.join()
    assert entered.is_set()
