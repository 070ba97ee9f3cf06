"""Ctrl-C and SIGTERM as one exception, and silence from both while a run is being ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn


@dataclass
class Caught:
    """The signal that interrupted a block: Ctrl-C, or SIGTERM as from ``ray job stop``.

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
    """Ctrl-C and SIGTERM raise KeyboardInterrupt in the main thread for the length of the block."""
    caught = Caught()

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
        caught.number = number
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Once a run is ending, a second signal must not cut its ending short. Only a driver's main thread hears any."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
