"""Signals that end a job as one exception, and what is not to be cut short by them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from distsens.errors import Interruption

# Ctrl-C, the end that systemd, Slurm, Kubernetes and `ray job stop` ask for, and a terminal that was closed.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SECONDS_OF_ONE = 1.0
_SECONDS_BETWEEN_LOOKS = 0.01
_STARTER = ThreadPoolExecutor(max_workers=1)

Handler = Callable[[int, FrameType | None], None]


@dataclass
class Caught:
    """The signal that interrupted a block.

    It stands here, not in the exception: Ray turns what a handler raises within its calls into a
    KeyboardInterrupt without a message.
    """

    number: int = signal.SIGINT

    @property
    def name(self) -> str:
        """As in the manuals: SIGINT."""
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """What a shell calls the end by this signal."""
        return 128 + self.number


@contextmanager
def signals_interrupt() -> Iterator[Caught]:
    """Signals that end a job raise KeyboardInterrupt in the main thread for the length of the block.

    One that comes twice at once, as ``timeout`` sends it to a process and to its group, is one. What leaves the block
    is an `Interruption`, which knows the exit code.
    """
    caught = Caught()
    with _handled(_once(caught, _interrupt)):
        try:
            yield caught
        except Interruption:
            raise
        except KeyboardInterrupt:
            raise Interruption(caught.exit_code) from None


@contextmanager
def signals_ask(caught: Caught, ask: Callable[[], bool]) -> Iterator[None]:
    """The first signal asks for an end in good order, and interrupts only where that says that it cannot; the next do.

    Parameters
    ----------
    caught : of a block around this one, which learns which signal it was.
    """
    asked = False

    def first() -> None:
        nonlocal asked
        if asked or not ask():
            raise KeyboardInterrupt
        asked = True

    with _handled(_once(caught, first)):
        yield


@contextmanager
def signals_wait() -> Iterator[None]:
    """What is done in the block is not cut short: a signal that came meanwhile is answered at its end."""
    if not _hears():
        yield
        return
    came: list[int] = []
    try:
        with _handled(lambda number, _: came.append(number)):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


def signals_stay(do: Callable[[], None]) -> None:
    """Do what sets handlers of signals of its own, as starting Ray does, in Python and in C++: ours are back at once.

    It is done in a thread that stays, for the kernel takes the thread that starts a process for its parent, and ends it
    with that. A signal is answered at its end: what is cut short within Ray lets the process hang.
    """
    if not _hears():
        do()
        return
    with signals_wait():
        handlers = {number: signal.getsignal(number) for number in _ENDING}
        doing = _STARTER.submit(do)
        while not doing.done():
            wait([doing], timeout=_SECONDS_BETWEEN_LOOKS)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    doing.result()


def ignore_signals() -> None:
    """Once a run is ending, a second signal must not cut its ending short. Only a driver's main thread hears any."""
    if _hears():
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)


def _once(caught: Caught, do: Callable[[], None]) -> Handler:
    """A handler of which a signal that comes twice at once is one."""
    last = float("-inf")

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > _SECONDS_OF_ONE:
            caught.number = number
            do()

    return handle


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """The handler takes the signals that end a job, but not a hangup that is ignored, as under ``nohup``."""
    numbers = [number for number in _ENDING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _hears() -> bool:
    return threading.current_thread() is threading.main_thread()
