"""How long a cluster that has lost machines is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable

from distsens.distributed.cluster import check_capacity_of_cluster
from distsens.distributed.endings import EndedError
from distsens.errors import InputError
from distsens.experiment import Workers

_SECONDS_OF_QUIET = 30.0
_SECONDS_FOR_A_LOST_MACHINE = 600.0


class MachinesLostError(EndedError):
    """The cluster has been too small for too long."""


class Patience:
    """Looks after a silence of the workers whether the cluster can still hold them, and gives up when it cannot.

    A machine that is lost may be replaced, so it is given some minutes, which is said; a busy cluster is waited for.

    Parameters
    ----------
    workers : without whom the work cannot go on.
    beside : cores that are needed beside them.
    say : shows a line.
    """

    def __init__(self, workers: Workers, beside: int = 0, say: Callable[[str], None] = lambda _: None) -> None:
        self._workers, self._beside, self._say = workers, beside, say
        self.heard()

    def heard(self) -> None:
        """The workers have been heard."""
        self._looked = time.monotonic()
        self._too_small_since: float | None = None

    def check(self) -> None:
        """Nothing was heard; :class:`MachinesLostError` when the cluster has been too small for too long."""
        now = time.monotonic()
        if now - self._looked < _SECONDS_OF_QUIET:
            return
        self._looked = now
        try:
            check_capacity_of_cluster(self._workers, self._beside)
        except InputError as error:
            minutes = f"{_SECONDS_FOR_A_LOST_MACHINE / 60:g} minutes"
            needed = "one is needed" if error.value == 1 else f"{error.value} are needed"
            lost = f"machines are lost: {error.allowed}, and {needed}"
            if self._too_small_since is None:
                self._too_small_since = now
                self._say(f"{lost}; waiting {minutes} for others")
            elif now - self._too_small_since > _SECONDS_FOR_A_LOST_MACHINE:
                raise MachinesLostError(f"{lost}; no others came within {minutes}") from None
        else:
            self._too_small_since = None
