"""A driver in a process of its own.

``whole-run URI`` does everything that a training run does. ``wait URI`` starts a run and a child process that inherits
all that can be inherited, prints the run's id and the child's process id, and waits to be killed. ``full-disk URI``
has a store that cannot grow while it writes epochs, and prints what it is told of that.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

from distsens.tracking import TrackedRun, check_tracking, reason


def whole_run(uri: str) -> None:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import nn

    check_tracking(uri, experiment="first")
    run = TrackedRun.create(uri, experiment="first", name="whole", params={"seed": 1}, tags={}, artifact_root=None)
    with run.watch_system(interval_s=0.1):
        run.log_epoch(0, {"loss": 1.0})
        time.sleep(0.3)
    run.log_dataset("digits", digest="0", context="train", source="here", images=2, image_shape=(1, 2, 2), classes=10)
    run.log_text("notes/a.txt", "text")
    run.log_figure("figures/empty.png", Figure())
    run.log_model(nn.Flatten(), np.zeros((2, 1, 2, 2), np.float32), b"weights")
    run.finish("FINISHED", "done")


def wait(uri: str) -> None:
    run = TrackedRun.create(uri, experiment="tests", name="waits", params={}, tags={}, artifact_root=None)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], close_fds=False)
    print(run.run_id, child.pid, flush=True)
    time.sleep(120)


def full_disk(uri: str) -> None:
    run = TrackedRun.create(uri, experiment="tests", name="full", params={}, tags={}, artifact_root=None)
    print(run.run_id, flush=True)
    size = Path(uri.removeprefix("sqlite:///")).stat().st_size
    with run.watch_system(interval_s=0.1):
        for epoch in range(200):
            if epoch == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # the guardian, which has begun, has none
            try:
                run.log_epoch(epoch, {f"loss{i}": 1.0 for i in range(200)})
            except Exception as error:
                print(f"error: {reason(error)}", flush=True)
                time.sleep(0.5)
                break
    try:
        run.finish("FAILED", "the disk is full")
    except Exception as error:
        print(f"error: {reason(error)}", flush=True)


if __name__ == "__main__":
    {"whole-run": whole_run, "wait": wait, "full-disk": full_disk}[sys.argv[1]](sys.argv[2])
