"""What nobody reads does not end who says it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distsens.unread import unread

ROOT = Path(__file__).resolve().parents[1]


def test_what_is_read_is_as_it_was(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        stream = unread(file)
        assert stream.write("ä line\n") == 7
        stream.flush()
        assert (stream.isatty(), stream.encoding, stream.fileno()) == (False, "utf-8", file.fileno())
    assert (tmp_path / "out").read_text("utf-8") == "ä line\n"


def test_a_reader_who_has_gone_is_not_missed() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as file:
        stream = unread(file)
        for _ in range(3):
            assert stream.write("x" * 100_000) == 100_000
            stream.flush()


@pytest.mark.parametrize("output", ["| head -c 1", "> /dev/full", ">&-", ">&- 2>&-"])
def test_help_ends_well_whoever_reads_it(output: str) -> None:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$0" jobs/models.py --help {output}', sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
