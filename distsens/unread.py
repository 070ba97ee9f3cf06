"""Output that nobody reads any more."""

from __future__ import annotations

import os
from typing import Any, TextIO, cast


class Unread:
    """A stream whose reader may go: a closed pipe (``| head``), a closed terminal, a full disk. The rest is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written, letters that the stream has not as Python writes them."""
        encoding = self._stream.encoding or "utf-8"  # of a file in memory there is none
        try:
            return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Write now what can be written."""
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        """Lead the file nowhere from now on, with what is still to be written to it."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def unread(stream: TextIO | None) -> TextIO:
    """The stream of this process, None where it was started without one, as one whose reader may go."""
    return cast("TextIO", Unread(stream or open(os.devnull, "w", encoding="utf-8")))
