"""Both signals interrupt, and which one it was is known even when Ray was in the midst of a call."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import ray

from distsens.distributed.signals import ignore_signals, signals_interrupt

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def send_soon(number: signal.Signals) -> None:
    threading.Timer(0.2, lambda: os.kill(os.getpid(), number)).start()


@BOTH
def test_a_signal_raises_in_the_block_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    send_soon(number)
    with pytest.raises(KeyboardInterrupt), signals_interrupt() as caught:
        time.sleep(10)
    assert (caught.name, caught.exit_code) == (number.name, 128 + number)
    assert signal.getsignal(number) == before


@pytest.mark.ray
@BOTH
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


@BOTH
def test_an_ignored_signal_interrupts_nothing_until_the_block_ends(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with signals_interrupt():
        ignore_signals()
        os.kill(os.getpid(), number)
        time.sleep(0.01)
    assert signal.getsignal(number) == before
