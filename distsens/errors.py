"""The one error that a wrong input raises, whatever room notices it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A value that the user gave and that cannot work: says which field, the value, and what is allowed.

    The jobs print it as one line and exit with code 2. Nothing has been started or written when it is raised.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}: got {value!r}; {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.allowed)


@contextmanager
def refusing(field: str, value: object, what: str) -> Iterator[None]:
    """Turn whatever other people's code (a model, that is) raises in the block into one line about a value of theirs.

    ``what`` says what fails, before the error's own words.

    Raises
    ------
    InputError : always for an error; one that is an InputError already stays as it is.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as problem:
        raise InputError(field, value, f"{what} ({said(problem)})") from problem


def said(problem: BaseException) -> str:
    """What other people's code said; of errors that are no refusals also what kind they are, and where they were made.

    It is one line, and never empty.
    """
    words = " ".join(str(problem).split())
    if isinstance(problem, AssertionError | ImportError | IndexError | RuntimeError | ValueError) and words:
        return words
    kind = f"{type(problem).__name__}: {words}" if words else type(problem).__name__
    frames = traceback.extract_tb(problem.__traceback__)
    return f"{kind}, {frames[-1].filename}:{frames[-1].lineno}" if frames else kind
