"""A process that writes to a place until it is killed, or kills itself at a given file operation.

usage: writer_process.py put PATH
       writer_process.py save PATH FIRST_EPOCH
       writer_process.py save-once PATH EPOCH STAMP DIES_AT
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable

from distsens.storage import Checkpoints, open_place

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def files_stamped(stamp: int) -> dict[str, bytes]:
    """Files whose bytes all tell the save that they come from."""
    return {name: bytes([stamp % 256]) * 150_000 for name in ("model", "optimizer", "state/random")}


def put_for_ever(path: str) -> None:
    place = open_place(path)
    for stamp in itertools.count():
        place.put("folder/file", bytes([stamp % 256]) * 1_000_000)
        if stamp == 0:
            print("ready", flush=True)


def save_for_ever(path: str, first: int) -> None:
    """Saves each epoch twice, the second time over the first, and prunes; is ready after the first epoch."""
    checkpoints = Checkpoints(open_place(path))
    for epoch in itertools.count(first):
        for stamp in (2 * epoch, 2 * epoch + 1):
            checkpoints.save(epoch, files_stamped(stamp), experiment="test", metrics={"stamp": stamp})
        checkpoints.prune(keep=2)
        if epoch == first:
            print("ready", flush=True)


def save_once(path: str, epoch: int, stamp: int, dies_at: int) -> None:
    """Saves one epoch; is gone by SIGKILL just before the file operation number ``dies_at``."""
    place = open_place(path)
    operations = itertools.count()

    def count(event: str, arguments: tuple[object, ...]) -> None:
        # Changes always count: shutil.rmtree names files relative to an open folder.
        counts = event in CHANGES or (event == "open" and str(arguments[0]).startswith(path))
        if counts and next(operations) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    Checkpoints(place).save(epoch, files_stamped(stamp), experiment="test", metrics={"stamp": stamp})


if __name__ == "__main__":
    job, path, *numbers = sys.argv[1:]
    jobs: dict[str, Callable[..., None]] = {"put": put_for_ever, "save": save_for_ever, "save-once": save_once}
    jobs[job](path, *map(int, numbers))
