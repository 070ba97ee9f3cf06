"""Worker processes joined by gloo, for tests of what holds however many workers share the work."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ROOT = Path(__file__).parents[2]

# Workers are forks of a process of Python's own that has imported what takes seconds.
multiprocessing.set_forkserver_preload(["torch._dynamo", "torch.distributed", "numpy", "pandas"])


def run_workers(work: Callable[..., Any], *args: Any, sizes: Sequence[int] = (2,)) -> list[list[Any]]:
    """What `work(*args)` returned on every rank, for each number of workers.

    Processes are started once, as many as the largest size. `work` is a function of a module; it returns what
    `torch.load(weights_only=True)` reads.
    """
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)  # a spawned worker imports the test's module by its name
        arguments = (folder, tuple(sizes), work, args)
        mp.start_processes(_worker, args=arguments, nprocs=max(sizes), start_method="forkserver")
        return [
            [torch.load(Path(folder) / f"{size}-{rank}.pt", weights_only=True) for rank in range(size)]
            for size in sizes
        ]


def _worker(rank: int, folder: str, sizes: tuple[int, ...], work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    for size in sizes:
        if rank < size:
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/rendezvous-{size}", rank=rank, world_size=size
            )
            torch.save(work(*args), Path(folder) / f"{size}-{rank}.pt")
            dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread of gloo's that asks for the interpreter while it shuts down aborts the process, on rare occasions.
    os._exit(0)
