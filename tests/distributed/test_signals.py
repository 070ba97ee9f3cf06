"""Each signal interrupts, and which one it was is known even when Ray was in the midst of a call."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import ray

from distsens.distributed.signals import (
    Caught,
    ignore_signals,
    signals_ask,
    signals_interrupt,
    signals_stay,
    signals_wait,
)
from distsens.distributed.training import Training
from distsens.errors import Interruption

EACH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


def send_soon(number: signal.Signals) -> None:
    threading.Timer(0.2, lambda: os.kill(os.getpid(), number)).start()


@EACH
def test_a_signal_raises_in_the_block_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    send_soon(number)
    with pytest.raises(KeyboardInterrupt), signals_interrupt() as caught:
        time.sleep(10)
    assert (caught.name, caught.exit_code) == (number.name, 128 + number)
    assert signal.getsignal(number) == before


@pytest.mark.ray
@EACH
def test_a_signal_within_a_call_of_ray_is_told_by_its_number(local_ray: None, number: signal.Signals) -> None:
    @ray.remote(num_cpus=0)
    class Never:
        def returns(self) -> None:
            threading.Event().wait()

    never = Never.remote()
    reference = never.returns.remote()
    send_soon(number)
    with pytest.raises(KeyboardInterrupt), signals_interrupt() as caught:
        ray.get(reference)
    ray.kill(never)
    assert caught.exit_code == 128 + number


@EACH
def test_an_ignored_signal_interrupts_nothing_until_the_block_ends(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with signals_interrupt():
        ignore_signals()
        os.kill(os.getpid(), number)
        time.sleep(0.01)
    assert signal.getsignal(number) == before


@EACH
def test_what_leaves_the_block_knows_the_exit_code_through_any_number_of_blocks(number: signal.Signals) -> None:
    with pytest.raises(Interruption) as raised, signals_interrupt(), signals_interrupt():
        signal.raise_signal(number)
    assert raised.value.exit_code == 128 + number


def test_a_signal_that_comes_twice_at_once_is_one() -> None:
    with pytest.raises(KeyboardInterrupt), signals_interrupt():  # noqa: PT012
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # would leave what is to be done at the end undone
            done = True
    assert done


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_interrupt():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@EACH
def test_what_is_not_to_be_cut_short_is_done_before_a_signal_is_answered(number: signal.Signals) -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), signals_interrupt() as caught:  # noqa: PT012
        with signals_wait():
            signal.raise_signal(number)
            done = True
        raise AssertionError("it was not answered")
    assert done
    assert caught.number == number


def test_the_first_signal_asks_for_an_end_and_a_later_one_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked, caught = [0.0], [], Caught()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def ask() -> bool:
        asked.append(True)
        return True

    with pytest.raises(KeyboardInterrupt), signals_ask(caught, ask):  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert asked == [True]
        now[0] = 10.0
        signal.raise_signal(signal.SIGINT)
    assert caught.number == signal.SIGINT
    with pytest.raises(KeyboardInterrupt), signals_ask(caught, lambda: False):
        signal.raise_signal(signal.SIGTERM)


@EACH
def test_handlers_that_something_sets_are_ours_again_at_once(number: signal.Signals) -> None:
    def start() -> None:
        send_soon(number)
        time.sleep(0.4)
        started.append(True)

    started: list[bool] = []
    with pytest.raises(KeyboardInterrupt), signals_interrupt() as caught:
        signals_stay(start)
    assert started, "it was cut short"
    assert caught.number == number
    with signals_interrupt():
        before = signal.getsignal(number)
        signals_stay(lambda: None)
        assert signal.getsignal(number) == before
    with pytest.raises(OSError, match="no"):
        signals_stay(lambda: _fail(OSError("no")))


def _fail(error: Exception) -> None:
    raise error


def test_a_training_that_has_ended_leaves_signals_as_they_were() -> None:
    class Trainer:
        def fit(self) -> None:
            """Nothing."""

    with signals_interrupt():
        before = signal.getsignal(signal.SIGTERM)
        Training(Trainer(), None).close()
        assert signal.getsignal(signal.SIGTERM) == before
