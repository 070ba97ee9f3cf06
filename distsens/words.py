"""What the words of a user can be: text that can be kept and sent anywhere, and paths that a file system can have."""

from __future__ import annotations

import os

LONGEST_TEXT = 4096
_LONGEST_NAME = 255


def fault_of_text(text: str) -> str | None:
    """What keeps a text from being a parameter, a tag or an argument; None if nothing does."""
    if "\0" in text:
        return "no text may hold the character NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it is not UTF-8"
    return f"it is longer than {LONGEST_TEXT:,} characters" if len(text) > LONGEST_TEXT else None


def fault_of_path(path: str) -> str | None:
    """What keeps a text from being a path on this machine, or an address; None if nothing does, be it there or not."""
    if fault := fault_of_text(path):
        return fault
    if "://" in path and not path.startswith("file://"):
        return None
    if any(len(name.encode()) > _LONGEST_NAME for name in path.split("/")):
        return f"no file's name is longer than {_LONGEST_NAME} bytes"
    if path.startswith("~") and os.path.expanduser(path).startswith("~"):
        return f"no user of this machine is called {path.partition('/')[0][1:]!r}; a file of that name is ./{path}"
    return None
