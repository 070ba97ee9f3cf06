"""Events reach the driver in order, once, through a real actor; arrays reach workers without a copy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray

from distsens.distributed.cluster import start_here
from distsens.distributed.mailbox import Mailbox
from distsens.distributed.monitor import ActorTold, EpochFinished, News, Started, Stopped, collect
from distsens.training import EpochRecord, Progress

pytestmark = pytest.mark.ray


def test_events_are_handed_over_in_order_and_once_and_of_progress_the_latest(local_ray: None) -> None:
    mailbox = start_here(Mailbox)
    told = ActorTold(mailbox)
    record = EpochRecord(1, {"validation/robust_accuracy": 0.5})
    events = (Started(2, "cpu", ()), EpochFinished(record, best=True, saved=False), Stopped("why"))
    for event in events:
        told.post(event)
    first = Progress(1, 3, 10, 100.0, {"ce": 1.0})
    second = Progress(1, 4, 10, 100.0, {"ce": 0.9})
    told.progress(first)
    told.progress(second)
    told.testing(7)
    assert collect(mailbox) == News(events, second, 7)
    assert collect(mailbox) == News((), None, None)


def test_the_mailbox_lives_on_the_drivers_node_and_takes_no_core(local_ray: None) -> None:
    before = ray.available_resources()["CPU"]
    mailbox = start_here(Mailbox)
    collect(mailbox)
    assert ray.available_resources()["CPU"] == before


def test_the_process_of_a_mailbox_need_not_wait_for_torch() -> None:
    modules = "import sys, distsens.distributed.mailbox; print({'torch', 'ray', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", modules], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@ray.remote(num_cpus=1)
class Reader:
    """Stands for a worker."""

    def look(self, refs: list[ray.ObjectRef]) -> tuple[bool, int]:
        """Whether the array is read-only shared memory, and the growth of this process's own memory in bytes."""
        before = private_bytes()
        array = ray.get(refs[0])
        _ = int(array[::4096].sum())
        return not array.flags.writeable, private_bytes() - before


def private_bytes() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith(("Private_Clean", "Private_Dirty")))


def test_workers_of_a_node_read_arrays_without_a_copy_each(local_ray: None) -> None:
    array = np.ones(64 * 2**20, dtype=np.uint8)
    ref = ray.put(array)
    readers = [Reader.remote() for _ in range(2)]
    for read_only, growth in ray.get([reader.look.remote([ref]) for reader in readers]):
        assert read_only
        assert growth < array.nbytes / 4
