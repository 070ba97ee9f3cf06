"""A spreadsheet computes nothing of a table, and reads every number and every text of it."""

from __future__ import annotations

import csv
import io
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsens.errors import printable
from distsens.report.csv_table import csv_table
from tests.report.nasty import FORMULAS, names


def read(table: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(table.decode())))


@given(st.lists(st.tuples(names, st.floats(allow_nan=False, allow_infinity=False)), min_size=1))
def test_texts_are_no_formulas_and_numbers_stay_numbers(found: list[tuple[str, float]]) -> None:
    texts = pd.Series([text for text, _ in found], dtype=object)  # else pandas refuses what is not UTF-8
    head, *rows = read(csv_table(pd.DataFrame({"=name": texts, "value": [number for _, number in found]})))
    assert head == ["'=name", "value"]
    assert len(rows) == len(found)
    for (text, number), (cell, value) in zip(found, rows, strict=True):
        assert cell in (printable(text), f"'{printable(text)}")
        assert cell[0] not in "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
        assert float(value) == number


@pytest.mark.parametrize("text", FORMULAS)
def test_what_begins_like_a_formula_does_so_no_more(text: str) -> None:
    ((_,), (cell,)) = read(csv_table(pd.DataFrame({"a": [text]})))
    assert cell.startswith(("'", "\\")), "a tab and a carriage return are written as letters"


@pytest.mark.parametrize(
    ("value", "cell"),
    [(-1.5, "-1.5"), (-3, "-3"), (None, ""), (True, "True"), (["=a", -1], "['=a', -1]"), ("-1.5", "'-1.5")],
)
def test_only_texts_are_changed(value: Any, cell: str) -> None:
    assert read(csv_table(pd.DataFrame({"a": pd.Series([value, "x"], dtype=object)})))[1] == [cell]
