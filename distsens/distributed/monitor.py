"""What workers tell the driver while a run goes on, by way of a mailbox."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import ray

from distsens.evaluation import Measurement
from distsens.training import EpochRecord, Progress

_PROGRESS, _TESTED = "progress", "tested"


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


@dataclass(frozen=True)
class News:
    """Events since the last news, and of step progress and tested images the latest, None where there is none."""

    events: tuple[Event, ...]
    progress: Progress | None
    tested: int | None


@dataclass(frozen=True)
class ActorTold:
    """A worker's way to the driver's mailbox: what must arrive is waited for."""

    mailbox: Any

    def post(self, event: Event) -> None:
        """Wait until the mailbox holds the event."""
        ray.get(self.mailbox.post.remote(pickle.dumps(event)))

    def progress(self, progress: Progress) -> None:
        """Send the step progress."""
        self.mailbox.note.remote(_PROGRESS, pickle.dumps(progress))

    def testing(self, images: int) -> None:
        """Send the number of test images that are done."""
        self.mailbox.note.remote(_TESTED, pickle.dumps(images))


def collect(mailbox: Any) -> News:
    """What the workers have told since the last call."""
    letters, notes = ray.get(mailbox.collect.remote())
    latest = {about: pickle.loads(content) for about, content in notes.items()}
    return News(tuple(map(pickle.loads, letters)), latest.get(_PROGRESS), latest.get(_TESTED))
