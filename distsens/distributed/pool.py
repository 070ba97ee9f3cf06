"""A pool of equal actors that take one task after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import ray

from distsens.experiment import Workers

K = TypeVar("K")


class ActorPool(Generic[K]):
    """Actors of one kind. Ray starts one anew elsewhere if it dies, and gives it the task that it was at.

    Each is made with the name of the run that it works for and its rank, for its log.
    """

    def __init__(self, kind: Callable[[str, int], Any], workers: Workers, run: str) -> None:
        remote = ray.remote(
            num_cpus=workers.cpus, num_gpus=workers.gpus, max_restarts=-1, max_task_retries=workers.max_failures
        )(kind)
        self.actors: list[Any] = [remote.remote(run, rank) for rank in range(workers.num)]

    def close(self) -> None:
        """End the actors, and free their places."""
        for actor in self.actors:
            ray.kill(actor)

    def run(self, tasks: Mapping[K, Callable[[Any], Any]], seconds: float) -> Iterator[tuple[K, Any] | None]:
        """Each task's key and result as it is done, and None when for some seconds none was.

        Parameters
        ----------
        tasks : by key, in the order in which they are begun: given an idle actor, a reference of the result.
        seconds : how long to wait before None.
        """
        waiting = list(tasks.items())[::-1]
        going: dict[Any, tuple[K, Any]] = {}
        idle = list(self.actors)
        while waiting or going:
            while idle and waiting:
                key, task = waiting.pop()
                actor = idle.pop()
                going[task(actor)] = (key, actor)
            done, _ = ray.wait(list(going), timeout=seconds)
            if not done:
                yield None
            for reference in done:
                key, actor = going.pop(reference)
                result = ray.get(reference)
                idle.append(actor)
                yield key, result
