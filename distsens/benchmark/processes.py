"""Following the memory of a job's processes while it runs."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from typing import Any

_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class MemorySample:
    """Resident memory in bytes of the largest process of a kind, at a time as of ``time.time``."""

    time: float
    bytes: int


def follow_memory(process: subprocess.Popen[Any], title: str) -> list[MemorySample]:
    """Wait for the end of a job; meanwhile, the memory of the largest of its processes whose command has this title."""
    import psutil

    samples = []
    while process.poll() is None:
        sizes = [0]
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if title in " ".join(child.cmdline()):
                    sizes.append(child.memory_info().rss)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # It ended between being listed and being looked at.
        samples.append(MemorySample(time.time(), max(sizes)))
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return samples
