"""`make` alone says what there is to make, and does none of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_make_alone_says_what_there_is_to_make() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    said = [line.split()[1] for line in done.stdout.splitlines()]
    assert {"train", "test", "help"} <= set(said) <= set(phony.split())
    assert set(said) == set(re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE))
    assert "Train the quickstart recipe on this machine" in done.stdout
    assert done.stderr == ""
