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


def test_what_can_be_printed_stays_as_it_is() -> None:
    assert str(InputError("a", "Grüße", "ε ≤ 8/255\x1b[2J")) == "a: got 'Grüße'; ε ≤ 8/255\\x1b[2J"


def test_a_refusal_is_told_by_the_name_of_the_field_that_was_given() -> None:
    with pytest.raises(InputError, match="examples: got 3; no"), renamed({"storage.path": "examples"}):
        raise InputError("storage.path", 3, "no")
    with pytest.raises(InputError, match="seed: got 3; no"), renamed({"storage.path": "examples"}):
        raise InputError("seed", 3, "no")
