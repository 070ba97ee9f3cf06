"""Processes of this machine that belong together: all of a Ray, say, whose files are in one folder."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def processes_with(marker: str) -> dict[int, str]:
    """Living processes of this machine whose environment names ``marker``: command lines by process id."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if state != "Z" and marker.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it ended while we looked
            continue
    return found


def end_processes_with(marker: str) -> None:
    """End the processes whose environment names a marker: Ray's agents outlive their head by minutes."""
    for process in processes_with(marker):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
