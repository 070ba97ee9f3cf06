"""What others tell a driver: an actor that holds it until the driver collects it.

It imports nothing, and what it holds is pickled: the process of a mailbox is there at once, and small.
"""

from __future__ import annotations

from typing import Any


class Mailbox:
    """Holds letters in order, and of notes about the same thing the latest only."""

    def __init__(self) -> None:
        self._letters: list[bytes] = []
        self._notes: dict[str, bytes] = {}
        self._controller: Any = None
        self._names: dict[str, str] = {}

    def controlled_by(self, controller: Any) -> None:
        """Keep the handle of the actor that controls the workers."""
        self._controller = controller

    def controller(self) -> Any:
        """The actor that controls the workers, or None until it is there."""
        return self._controller

    def call(self, handle: str, name: str) -> None:
        """Say what we call the one whom Ray knows by this handle."""
        self._names[handle] = name

    def name(self, handle: str) -> str:
        """What :meth:`call` said."""
        return self._names[handle]

    def post(self, letter: bytes) -> None:
        """Keep a letter for the driver."""
        self._letters.append(letter)

    def note(self, about: str, content: bytes) -> None:
        """Replace what is noted about something."""
        self._notes[about] = content

    def collect(self) -> tuple[list[bytes], dict[str, bytes]]:
        """Hand over the letters and the notes since the last call."""
        letters, self._letters = self._letters, []
        notes, self._notes = self._notes, {}
        return letters, notes
