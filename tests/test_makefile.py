"""`make` alone says what there is to make, and does none of it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_make_alone_says_what_there_is_to_make() -> None:
    # The tests may be made themselves, of which a make below another one would speak.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    said = [line.split()[1] for line in done.stdout.splitlines()]
    assert {"train", "test", "help"} <= set(said) <= set(phony.split())
    assert set(said) == set(re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE))
    assert "Train the quickstart recipe on this machine" in done.stdout
    assert done.stderr == ""
