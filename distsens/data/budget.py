"""Memory that several threads share: who would go beyond it waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """So much of something, of which each takes a part for a while; who wants more than all takes all of it."""

    def __init__(self, most: int) -> None:
        self._most, self._left = most, most
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, wanted: int) -> Iterator[None]:
        """Hold a part for the length of the block, from when it is free."""
        part = min(wanted, self._most)
        with self._changed:
            self._changed.wait_for(lambda: part <= self._left)
            self._left -= part
        try:
            yield
        finally:
            with self._changed:
                self._left += part
                self._changed.notify_all()
