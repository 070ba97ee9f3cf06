from __future__ import annotations

import math

import pytest

from distsens.strict_json import Document, load_as, load_json


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is there twice"),
        (b"[NaN]", "NaN is no number of JSON"),
        (b"-Infinity", "-Infinity is no number of JSON"),
        (b"1e999", "1e999 is too large a number"),
        (b"1" * 5000, "Exceeds the limit"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"a":' * 100_000, "it is nested too deeply"),
        (b'"\xff"', "it is not UTF-8"),
        (b"\x80\x04K\x01.", "it is not UTF-8"),
    ],
)
def test_what_is_no_json_is_refused_in_one_line(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        load_json(content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_numbers_that_are_not_finite_are_read_where_they_are_wanted() -> None:
    assert math.isnan(load_json("NaN", finite=False))


class Inner(Document):
    count: int


class Outer(Document):
    name: str
    inner: Inner
    value: float = 0.0


def test_a_document_is_of_the_kind_that_is_wanted() -> None:
    assert load_as(Outer, b'{"name": "a", "inner": {"count": 3}, "value": 1, "newer": []}').inner.count == 3
    for content, why in (
        (b"[]", "it should be a valid dictionary"),
        (b'{"name": "a"}', "inner: Field required"),
        (b'{"name": null, "inner": {"count": 3}}', "name: it should be a valid string"),
        (b'{"name": "a", "inner": {"count": "3"}}', "inner.count: it should be a valid integer"),
        (b'{"name": "a", "inner": {"count": true}}', "inner.count: it should be a valid integer"),
        (b'{"name": "a", "inner": {"count": 3}, "value": "1"}', "value: it should be a valid number"),
    ):
        with pytest.raises(ValueError, match=why):
            load_as(Outer, content)
