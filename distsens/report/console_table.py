"""Tables on a console that never lose a column or a digit, however narrow it is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from distsens.console import plain

# Of a column: a border and a blank to each side.
_AROUND = 3
# To what names fold before columns are moved to a table below.
_NARROWEST_NAMES = 15


def print_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, last_stands_out: bool = False
) -> None:
    """Print a table; on a terminal as :func:`fitting_tables`, in a log whole, where lines may be as long as they need.

    Parameters
    ----------
    columns, rows : the first column names the rows; the others are flush right, but for nameless ones.
    last_stands_out : the last row is bold and set apart.
    """
    if console.is_terminal:
        for table in fitting_tables(columns, rows, console.width, last_stands_out=last_stands_out):
            console.print(table)
        return
    before = console.width
    console.width = max(before, sum(_widths(columns, rows)) + 1)
    try:
        console.print(_table(range(len(columns)), columns, rows, last_stands_out))
    finally:
        console.width = before


def fitting_tables(
    columns: Sequence[str], rows: Sequence[Sequence[str]], room: int, *, last_stands_out: bool = False
) -> list[Table]:
    """Tables no wider than ``room``, which rich would cut: names fold, and columns that do not fit follow below."""
    blocks = _blocks(_widths(columns, rows), room)
    return [_table(block, columns, rows, last_stands_out) for block in blocks]


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(plain(cell).cell_len for cell in column) + _AROUND for column in zip(columns, *rows, strict=True)]


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Positions of the columns of each table, each time with the names."""
    if min(widths[0], _NARROWEST_NAMES) + sum(widths[1:]) < room:
        return [list(range(len(widths)))]
    names = min(widths[0], room // 2)
    blocks, used = [[0]], names + 1
    for position in range(1, len(widths)):
        if len(blocks[-1]) > 1 and used + widths[position] > room:
            blocks.append([0])
            used = names + 1
        blocks[-1].append(position)
        used += widths[position]
    return blocks


def _table(
    positions: Sequence[int], columns: Sequence[str], rows: Sequence[Sequence[str]], last_stands_out: bool
) -> Table:
    table = Table()
    for position in positions:
        flush = "right" if position and columns[position] else "left"
        table.add_column(plain(columns[position]), justify=flush, overflow="fold", no_wrap=position > 0)  # type: ignore[arg-type]
    for number, row in enumerate(rows, 1):
        stands_out = last_stands_out and number == len(rows)
        if stands_out:
            table.add_section()
        table.add_row(*(plain(row[position]) for position in positions), style="bold" if stands_out else None)
    return table
