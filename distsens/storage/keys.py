"""What a key may look like: the same for every kind of place."""

from __future__ import annotations

import re

from distsens.errors import InputError

# A part starts with a letter, a digit or "_". That alone rules out "..", absolute paths, hidden and temporary files.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,199}"
_KEY = re.compile(rf"{_PART}(/{_PART})*")


def is_key(text: str) -> bool:
    """Whether ``text`` can name a file in a place, such as ``checkpoints/epoch-0003/model.safetensors``."""
    return _KEY.fullmatch(text) is not None


def check_key(text: str) -> str:
    """Return ``text``, or raise `InputError` if it is no key."""
    if not is_key(text):
        raise InputError(
            "storage key",
            text,
            "must be parts joined by '/', each a letter, digit or _ and then at most 199 of these or of . + = @ -",
        )
    return text
