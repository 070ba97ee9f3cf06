"""A line on a console is one line with all its characters, and nothing is printed in any other way."""

from __future__ import annotations

import ast
import io
from pathlib import Path

from hypothesis import given
from rich.console import Console

from distsens.console import print_line
from distsens.errors import printable
from tests.report.nasty import names

ROOT = Path(__file__).resolve().parents[1]
# Those that print what is no line: tables, of which each cell is made by `plain`.
TABLES = {"distsens/console.py", "distsens/report/console_table.py", "jobs/benchmark.py"}


@given(names)
def test_a_name_neither_ends_a_line_nor_steers_the_terminal(name: str) -> None:
    file = io.StringIO()
    print_line(Console(file=file, width=20, force_terminal=True, color_system=None), f"class {name}")
    assert file.getvalue() == f"class {printable(name)}\n"


def test_nothing_else_prints_to_a_console_or_makes_text_of_markup() -> None:
    found = set()
    for path in [*(ROOT / "distsens").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr == "from_markup" or (
                node.func.attr in ("print", "log", "rule") and "console" in ast.unparse(node.func.value).lower()
            ):
                found.add(str(path.relative_to(ROOT)))
    assert found == TABLES
