"""The one error that a wrong input raises, whatever room notices it."""

from __future__ import annotations

import reprlib
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from distsens.redaction import without_secrets

_LONGEST = {"field": 120, "value": 240, "allowed": 2000}
"""Characters that a refusal has of each; what is longer is cut in the middle."""


class InputError(ValueError):
    """A value that the user gave and that cannot work: says which field, the value, and what is allowed.

    The jobs print it as one line and exit with code 2. Nothing has been started or written when it is raised. Parts of
    it come from files of others, so what is no printable character, as the codes that steer a terminal, is escaped, and
    what is long is cut.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = short(allowed)
        super().__init__(f"{_cut(printable(field), _LONGEST['field'])}: got {shown(value)}; {self.allowed}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.allowed)


class UnreachableError(InputError):
    """What is right, as far as anybody knows, and out of reach at the moment: another one may do."""


class Interruption(KeyboardInterrupt):
    """A signal has ended a job; its exit code is the one that a shell has for that signal."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class UnavailableError(RuntimeError):
    """What a job cannot begin without is not to be had, though its input is right: one line and exit code 1."""


class _Short(reprlib.Repr):
    """``repr`` of values of any size and depth, in bounded time: only their beginnings and ends are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 20
        self.maxstring = self.maxlong = self.maxother = _LONGEST["value"]

    def repr_int(self, value: int, level: int) -> str:  # noqa: ARG002
        """Python writes no number of more than 4,300 digits."""
        if value.bit_length() < _LONGEST["value"]:
            return repr(value)
        return f"a number of about {round(value.bit_length() * 0.30103):,} digits"

    def repr_str(self, value: str, level: int) -> str:  # noqa: ARG002
        """As Python writes it, which escapes some characters."""
        return _cut(repr(_cut(without_secrets(value), self.maxstring)), self.maxstring)


def shown(value: object) -> str:
    """``repr(value)`` in one printable line of bounded length."""
    return _cut(printable(_Short().repr(value)), _LONGEST["value"])


def short(text: str) -> str:
    """A text of others in one printable line of bounded length."""
    return _cut(printable(text), _LONGEST["allowed"])


def _cut(text: str, longest: int) -> str:
    """The text, or its beginning and end around how many characters are left out."""
    if len(text) <= longest:
        return text
    kept = longest // 2 - 20
    return f"{text[:kept]}... ({len(text) - 2 * kept:,} more) ...{text[-kept:]}"


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


def printable(text: str) -> str:
    """The text in one line without secrets and codes that steer a terminal: other characters as Python writes them."""
    text = without_secrets(text)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


@contextmanager
def renamed(fields: Mapping[str, str]) -> Iterator[None]:
    """Refusals of the block under the names of the fields that were given: ``{"storage.path": "examples"}``."""
    try:
        yield
    except InputError as error:
        if error.field not in fields:
            raise
        raise InputError(fields[error.field], error.value, error.allowed) from error
