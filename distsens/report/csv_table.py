"""Tables for spreadsheets, which take a text that begins like a formula for one, and compute it."""

from __future__ import annotations

import unicodedata
from typing import Any

import pandas as pd

from distsens.errors import printable


def csv_table(rows: pd.DataFrame) -> bytes:
    """The rows as CSV in UTF-8, a line each: numbers stay as they are, of texts none is a formula."""
    text: str = rows.map(_cell).rename(columns=_cell).to_csv(index=False)
    return text.encode()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = str(value)
    if not isinstance(value, str):
        return value
    text = printable(value)
    first = unicodedata.normalize("NFKC", text).lstrip()[:1]  # a wide = is taken for =, too
    return f"'{text}" if first and first in "=+-@" else text
