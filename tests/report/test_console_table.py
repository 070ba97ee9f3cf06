"""Tables lose nothing, however narrow the console."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from distsens.report.console_table import print_table

NAMES = ("error at severity", "1", "2", "3", "4", "5")
ROWS = [("gaussian_noise", *["12.3%"] * 5), ("elastic_transform", *["100.0%"] * 5)]


def printed(width: int, columns: tuple[str, ...], rows: list[tuple[str, ...]], *, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    print_table(console, columns, rows)
    assert console.width == width
    return file.getvalue()


def cells(output: str, rows: int) -> dict[str, list[str]]:
    """By column its cells, of tables whose names do not fold."""
    found: dict[str, list[str]] = {}
    lines = [line for line in output.splitlines() if line[0] in "│┃"]
    for start in range(0, len(lines), rows + 1):
        block = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines[start : start + rows + 1]]
        for column in zip(*block, strict=True):
            found[column[0]] = list(column[1:])
    return found


@pytest.mark.parametrize("terminal", [True, False])
def test_the_corruption_table_fits_eighty_columns_in_one_piece(terminal: bool) -> None:
    output = printed(80, NAMES, ROWS, terminal=terminal)
    assert max(map(len, output.splitlines())) <= 80
    assert output.count("elastic_transform") == 1
    assert cells(output, 2) == {name: [row[n] for row in ROWS] for n, name in enumerate(NAMES)}


@settings(max_examples=30)
@given(st.integers(24, 120), st.integers(1, 12), st.booleans())
def test_every_cell_of_every_column_is_there_at_every_width(width: int, columns: int, terminal: bool) -> None:
    names = ("name", *(f"column {number}" for number in range(columns)))
    rows = [(f"row {row}", *(f"{row}{number}.123%" for number in range(columns))) for row in range(3)]
    output = printed(width, names, rows, terminal=terminal)
    assert "…" not in output
    assert cells(output, 3) == {name: [row[n] for row in rows] for n, name in enumerate(names)}
    if terminal:
        assert max(map(len, output.splitlines())) <= width
    else:
        assert output.count("row 0") == 1, "in a log a row is a line"


def test_long_names_fold_before_columns_move_and_markup_is_shown_as_it_is() -> None:
    name = "seed-17/checkpoints/epoch-0012/model-of-somebody-with-a-long-name.safetensors"
    rows = [(name, "99.40%", "98.70% to 99.72%", "92.00%", "90.16% to 93.53%"), ("[bold]b", *["1"] * 4)]
    output = printed(80, ("model", "clean", "95 % interval", "robust", "95 % interval"), rows, terminal=True)
    assert max(map(len, output.splitlines())) <= 80
    folded = "".join(line.split("│")[1].strip() for line in output.splitlines() if line.startswith("│"))
    assert folded == f"{name}[bold]b"
    for value in rows[0][1:]:
        assert output.count(value) == 1
    assert name in printed(80, ("model", *NAMES[1:5]), rows, terminal=False)
