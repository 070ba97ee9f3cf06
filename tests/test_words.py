"""What can be kept and sent anywhere as text, and what a file system can have as a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsens.words import LONGEST_TEXT, fault_of_path, fault_of_text


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=100))
def test_any_text_of_people_is_one(text: str) -> None:
    assert fault_of_text(text) is None


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "caf\udce9", "x" * (LONGEST_TEXT + 1)])
def test_text_that_cannot_be_stored_everywhere_is_none(text: str) -> None:
    assert fault_of_text(text)
    assert fault_of_path(text)


@pytest.mark.parametrize(
    "path",
    ["", "~", "~/x", "~root/x", "./~nobody", "a" * 255, "a/" * 2000, "s3://bucket/" + "k" * 300, "runs:/x", "é" * 127],
)
def test_a_path_that_may_be_there_is_one(path: str) -> None:
    assert fault_of_path(path) is None


@pytest.mark.parametrize(
    "path",
    ["~nobody-at-all", "~nobody-at-all/x", "a" * 256, "x/" + "a" * 256 + "/y", "é" * 128, "file:///" + "a" * 256],
)
def test_a_path_that_can_never_be_there_is_none(path: str) -> None:
    assert fault_of_path(path)
