"""Lines on a console that show the words of others as they are: none colours, moves, links or becomes a picture."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from distsens.errors import printable


def plain(words: str, style: str = "") -> Text:
    """Words for a cell or a line: rich takes of a text neither markup nor ``:emoji:``, which it would of a string."""
    return Text(printable(words), style)


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print one line, however long: what would begin another, as all that steers a terminal, is escaped."""
    console.print(plain(line, style), soft_wrap=True)
