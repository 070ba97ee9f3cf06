"""What workers tell the driver while a run goes on: an actor that holds events until the driver collects them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from distsens.distributed.cluster import start_here
from distsens.evaluation import Measurement
from distsens.training import EpochRecord, Progress


@dataclass(frozen=True)
class Started:
    """The workers stand; ``history`` is what an earlier attempt has finished, ``skipped`` its unusable checkpoints."""

    workers: int
    device: str
    history: tuple[EpochRecord, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class EpochFinished:
    """An epoch's record, whether it is the best so far, and whether its checkpoint is stored."""

    record: EpochRecord
    best: bool
    saved: bool


@dataclass(frozen=True)
class Stopped:
    """Training stopped for a reason that a restart would not mend."""

    message: str


@dataclass(frozen=True)
class EndedEarly:
    """Training ended before its last epoch because going on is in vain; the best epoch is tested all the same."""

    epoch: int
    reason: str


@dataclass(frozen=True)
class Tested:
    """The best epoch's measurement on the test split."""

    best_epoch: int
    measurement: Measurement


Event = Started | EpochFinished | EndedEarly | Stopped | Tested


class Monitor:
    """Holds events in order, and of step progress and test progress the latest only."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._progress: Progress | None = None
        self._tested = 0
        self._controller: Any = None

    def controlled_by(self, controller: Any) -> None:
        """Keep the handle of the actor that controls the workers."""
        self._controller = controller

    def controller(self) -> Any:
        """The actor that controls the workers, or None until it is there."""
        return self._controller

    def post(self, event: Event) -> None:
        """Keep an event for the driver."""
        self._events.append(event)

    def progress(self, progress: Progress) -> None:
        """Replace the step progress."""
        self._progress = progress

    def testing(self, images: int) -> None:
        """Replace the number of test images that rank 0 has done."""
        self._tested = images

    def collect(self) -> tuple[list[Event], Progress | None, int]:
        """Hand over the events since the last call, and the latest progress."""
        events, self._events = self._events, []
        return events, self._progress, self._tested


@dataclass(frozen=True)
class ActorTold:
    """A worker's way to the monitor: what must arrive is waited for."""

    monitor: Any

    def post(self, event: Event) -> None:
        """Wait until the monitor holds the event."""
        ray.get(self.monitor.post.remote(event))

    def progress(self, progress: Progress) -> None:
        """Send the step progress."""
        self.monitor.progress.remote(progress)

    def testing(self, images: int) -> None:
        """Send the number of test images that are done."""
        self.monitor.testing.remote(images)


def start_monitor() -> Any:
    """Start a monitor on the driver's node, where it lives exactly as long as the driver's node does."""
    return start_here(Monitor)
