"""What the trials of a sweep tell its driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distsens.distributed.monitor import Event


@dataclass(frozen=True)
class Began:
    """A trial, perhaps anew, begins to train with these values; ``epochs`` those before this rung's first."""

    values: Mapping[str, Any]
    epochs: int


@dataclass(frozen=True)
class RungEnded:
    """A trial's training at a rung has ended, well or not; ``clean`` and ``robust`` on validation in its best epoch.

    score : by the sweep's goal. last : whether the trial has come to its end.
    """

    clean: float
    robust: float
    score: float
    failure: str | None
    last: bool


@dataclass(frozen=True)
class GaveUp:
    """An attempt has ended by what may pass; Ray Tune tries again as often as it may, and so does a resumed sweep."""

    failure: str


@dataclass(frozen=True)
class TrialEvent:
    """Something that happened to a trial at a rung."""

    trial: str
    rung: int
    event: Event | Began | RungEnded | GaveUp
