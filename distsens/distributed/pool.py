"""A pool of equal actors that take one task after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import ActorUnavailableError

from distsens.distributed.patience import Patience
from distsens.distributed.ray_internals import node_of
from distsens.experiment import Workers

K = TypeVar("K")


class ActorPool(Generic[K]):
    """Actors of one kind. Ray starts one anew elsewhere if it dies, and gives it the task that it was at.

    One whose node is lost may find no other place: another one that is idle takes its task, as one does when Ray's own
    retries were in vain, so a task may be done twice, and must be of the kind of which that changes nothing.
    When no machine is left that could hold one, others are waited for, and given up in the end: see :class:`Patience`.
    Each is made with the name of the run that it works for and its rank, for its log.
    """

    def __init__(
        self, kind: Callable[[str, int], Any], workers: Workers, run: str, say: Callable[[str], None] = lambda _: None
    ) -> None:
        remote = ray.remote(
            num_cpus=workers.cpus, num_gpus=workers.gpus, max_restarts=-1, max_task_retries=workers.max_failures
        )(kind)
        self._retries = workers.max_failures
        self._patience = Patience(workers.model_copy(update={"num": 1}), say=say)
        self._actors: list[Any] = [remote.remote(run, rank) for rank in range(workers.num)]
        self._idle: list[Any] = []
        self._nodes: dict[Any, str] = {}
        self._coming: dict[Any, Any] = {}
        for actor in self._actors:
            self._await(actor)

    def close(self) -> None:
        """End the actors, and free their places."""
        for actor in self._actors:
            ray.kill(actor)

    def run(self, tasks: Mapping[K, Callable[[Any], Any]], seconds: float) -> Iterator[tuple[K, Any] | None]:
        """Each task's key and result as it is done, and None when for some seconds none was.

        Parameters
        ----------
        tasks : by key, in the order in which they are begun: given an idle actor, a reference of the result.
        seconds : how long to wait before None.
        """
        self._patience.heard()
        waiting = list(tasks)[::-1]
        going: dict[Any, tuple[K, Any]] = {}
        given_up: Counter[K] = Counter()
        while waiting or going:
            while self._idle and waiting:
                key, actor = waiting.pop(), self._idle.pop()
                going[tasks[key](actor)] = (key, actor)
            done, _ = ray.wait([*going, *self._coming], timeout=seconds)
            for reference in done:
                try:
                    result = ray.get(reference)
                except ActorUnavailableError:
                    # All of Ray's own retries may go to an actor of which it does not know yet that it is gone.
                    if reference in self._coming or given_up[going[reference][0]] == self._retries:
                        raise
                    key, actor = going.pop(reference)
                    given_up[key] += 1
                    waiting.append(key)
                    self._await(actor)
                    continue
                if reference in self._coming:
                    actor = self._coming.pop(reference)
                    self._nodes[actor] = result
                else:
                    key, actor = going.pop(reference)
                    yield key, result
                self._idle.append(actor)
            if done:
                self._patience.heard()
            else:
                self._patience.check()
                waiting += self._lost(going) if self._idle else []
                yield None

    def _lost(self, going: dict[Any, tuple[K, Any]]) -> list[K]:
        """Take the tasks of actors whose node is gone from what is going; these actors are waited for anew."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        lost = {reference: task for reference, task in going.items() if self._nodes[task[1]] not in alive}
        for reference, (_, actor) in lost.items():
            del going[reference]
            ray.cancel(reference)
            self._await(actor)
        return [key for key, _ in lost.values()]

    def _await(self, actor: Any) -> None:
        self._coming[node_of(actor)] = actor
