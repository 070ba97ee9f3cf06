"""Temporary folders of processes that were killed do not stay, and nothing else goes with them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distsens import scratch
from distsens.scratch import scratch_folder

WAITS = """
import sys, time
from pathlib import Path
from distsens.scratch import goes_with, scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "large").write_bytes(b"x")
    goes_with(folder, Path(sys.argv[2]))
    print(folder, flush=True)
    time.sleep(60)
"""
COMES_AND_GOES = """
import sys
from pathlib import Path
from distsens import scratch
for _ in range(100):
    scratch._remove_left.cache_clear()
    with scratch.scratch_folder(Path(sys.argv[1])) as folder:
        (folder / "file").write_bytes(b"x")
"""


@pytest.fixture
def look(tmp_path: Path) -> Callable[[], None]:
    """Use a folder as the next process does."""

    def use() -> None:
        scratch._remove_left.cache_clear()
        with scratch_folder(tmp_path) as folder:
            assert folder.parent == tmp_path
            (folder / "file").touch()
        assert not folder.exists()

    return use


def test_what_a_killed_process_has_left_is_removed_with_what_goes_with_it_and_a_living_ones_is_not(
    tmp_path: Path, look: Callable[[], None]
) -> None:
    other = tmp_path / "session"
    other.mkdir()
    with subprocess.Popen([sys.executable, "-c", WAITS, tmp_path, other], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        look()
        assert (folder / "large").exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (folder / "large").exists()
    look()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_provably_of_a_process_of_this_machine_is_left(tmp_path: Path, look: Callable[[], None]) -> None:
    prefix = f".{scratch._PREFIX}"
    kept = [tmp_path / "distsens-2jnq0yr1", tmp_path / ".distsens-another.machine-2jnq0yr1", tmp_path / "precious"]
    for folder in kept:
        (folder / "deep").mkdir(parents=True)
    (tmp_path / f"{prefix}link").symlink_to(tmp_path / "precious")
    (tmp_path / f"{prefix}file").touch()
    before = sorted(tmp_path.rglob("*"))
    look()
    assert sorted(tmp_path.rglob("*")) == before


def test_processes_that_begin_together_do_not_remove_one_anothers(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", COMES_AND_GOES, tmp_path]) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert list(tmp_path.iterdir()) == []
