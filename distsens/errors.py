"""The one error that a wrong input raises, whatever room notices it."""

from __future__ import annotations


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
