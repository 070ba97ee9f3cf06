"""A refusal is one line that no file's content can steer, and names the field that was given."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsens.errors import InputError, renamed


@given(value=st.text(), allowed=st.text())
def test_a_refusal_is_one_printable_line_whatever_it_quotes(value: str, allowed: str) -> None:
    error = InputError("field", value, allowed)
    assert str(error).isprintable()
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@given(field=st.text(), allowed=st.text(), value=st.recursive(st.text() | st.integers(), st.lists))
def test_a_refusal_is_short_whatever_it_quotes(field: str, allowed: str, value: object) -> None:
    for times in (1, 10_000):
        error = InputError(field * times, [value] * times, allowed * times)
        assert len(str(error)) < 2_500
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("x" * 100_000, "'xxx"),
        (10**5000, "a number of about 5,000 digits"),
        ([-(10**5000)], "[a number of about 5,000 digits]"),
        (["x"] * 100_000, "['x', 'x', "),
        ({f"k{number}": number for number in range(100_000)}, "{'k0': 0, "),
    ],
    ids=["text", "number", "number in a list", "list", "mapping"],
)
def test_a_long_value_is_told_by_its_beginning(value: object, says: str) -> None:
    error = InputError("name", value, "no")
    assert str(error).startswith(f"name: got {says}")
    assert str(error).endswith("; no")
    assert len(str(error)) < 300
    assert error.value == value


def test_a_value_that_holds_itself_is_told() -> None:
    value: list[object] = []
    value.append(value)
    assert str(InputError("name", value, "no")) == "name: got [[[[[...]]]]]; no"


def test_what_can_be_printed_stays_as_it_is() -> None:
    assert str(InputError("a", "Grüße", "ε ≤ 8/255\x1b[2J")) == "a: got 'Grüße'; ε ≤ 8/255\\x1b[2J"


def test_a_refusal_is_told_by_the_name_of_the_field_that_was_given() -> None:
    with pytest.raises(InputError, match="examples: got 3; no"), renamed({"storage.path": "examples"}):
        raise InputError("storage.path", 3, "no")
    with pytest.raises(InputError, match="seed: got 3; no"), renamed({"storage.path": "examples"}):
        raise InputError("seed", 3, "no")
