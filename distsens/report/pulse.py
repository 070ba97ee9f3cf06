"""Signs of life in a log: where no terminal shows bars, a line now and then says what is going on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from distsens.console import plain, print_line

SECONDS = 30.0
"""The longest that a log stays silent while something is done."""


class Pulse:
    """Says what is being done, and for how long, whenever nothing was said for a while; used as a context manager.

    It has a thread of its own, because what is being done may keep the others from saying anything. On a terminal it
    says nothing.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._doing = ""
        self._began = self._said = time.monotonic()
        self._over = threading.Event()
        self._thread = None if console.is_terminal else threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Pulse:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._said = time.monotonic()
        print_line(self._console, line)

    def doing(self, what: str) -> None:
        """What is being done from now on, or how far it is; nothing worth a word if empty."""
        self._doing = what

    def begin(self) -> None:
        """Something new begins: time counts from now."""
        self._began = time.monotonic()

    def _beat(self) -> None:
        while not self._over.wait(SECONDS / 30.0):
            now = time.monotonic()
            if self._doing and now - self._said >= SECONDS:
                self.say(f"{self._doing}  ({now - self._began:.0f} s)")


@contextmanager
def checking(console: Console) -> Iterator[Callable[[str], None]]:
    """Show that something is being checked; yields what says what it is."""
    if console.is_terminal:
        with console.status("checking") as status:
            yield lambda what: status.update(plain(what))
        return
    with Pulse(console) as pulse:
        pulse.doing("checking")
        yield pulse.doing
