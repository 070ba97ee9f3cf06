"""The Ray cluster that a job runs on: joined where RAY_ADDRESS names one, else started on this machine for the job."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distsens.distributed.joining import address_to_join, check_answers, join
from distsens.distributed.local_ray import start_local_ray
from distsens.distributed.ray_internals import JOB_CONFIG_VARIABLE, grows, largest_resources
from distsens.errors import InputError
from distsens.experiment import Workers
from distsens.scratch import goes_with, scratch_folder

PLACES_TIMEOUT_S = 1800
"""Seconds of waiting for a busy cluster that Ray Train counts as one failure of its controller."""

_SETTINGS = {
    # Train's controller looks at its workers this often; a report waits for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Workers stay in the folder that the job was started in, so that a model factory there can be imported.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's coming default, asked for here so that it does not warn of it on every start.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A process that tells workers of machines about to be taken away; ours need no word, their checkpoints are there.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Train counts a wait of this length for free places as a failure; see the driver, which waits for a day.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(PLACES_TIMEOUT_S),
}


@contextmanager
def connected(say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Be connected to the cluster for the length of the block; a cluster that was started for it ends with it."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    address = address_to_join()
    with ExitStack() as stack:
        if address is None:
            goes_with(stack.enter_context(scratch_folder()), start_local_ray(local_cpus(), say))
        else:
            join(address, say)
        try:
            yield
        finally:
            ray.shutdown()


def check_cluster(workers: Workers, beside: int = 0, tell: Callable[[str], None] = lambda _: None) -> None:
    """Refuse, before anything is started, what this machine can never give, or an address where no cluster answers.

    ``tell`` hears what is waited for.
    """
    address = address_to_join()
    if address is not None:
        tell(f"asking for the Ray cluster at {address}")
        check_answers(address)
    else:
        here = {"CPU": float(local_cpus()), "GPU": float(torch.cuda.device_count())}
        check_capacity(workers, [here], "this machine", beside)


def check_room(needs: Iterable[tuple[Workers, int]], say: Callable[[str], None]) -> None:
    """Join the cluster that RAY_ADDRESS names, if it does, and refuse what it can never give.

    Parameters
    ----------
    needs : workers, and the cores beside them; what this machine can give without a cluster is checked before.
    say : shows what is done, and what of it cannot be known.
    """
    if address_to_join() is None:
        return
    with connected(say):
        for workers, beside in needs:
            check_capacity_of_cluster(workers, beside)
            places = places_of_cluster(workers, beside)
            if places is None:
                say(f"the cluster grows, and does not say how far: room for {_count(workers)} is not checked")


def check_capacity_of_cluster(workers: Workers, beside: int = 0) -> None:
    """Refuse what the connected cluster can never give, however long one waits.

    One whose autoscaler does not say how far it may grow, as Ray's own does not, may give anything.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    try:
        check_capacity(workers, nodes, "the cluster", beside)
    except InputError:
        # Totals over all kinds of nodes: for a cluster that grows, how they are shared out is not known before.
        grown = largest_resources()
        if grown is not None:
            check_capacity(workers, [grown], "the cluster, grown as far as it may,", beside)
        elif not grows():
            raise


def places_of_cluster(workers: Workers, beside: int = 0) -> int | None:
    """How many of the workers the connected cluster holds; None for one that grows and does not say how far."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    grown = largest_resources()
    if grown is not None:
        return max(places_for(workers, nodes, beside), places_for(workers, [grown], beside))
    return None if grows() else places_for(workers, nodes, beside)


def check_capacity(workers: Workers, nodes: Sequence[dict[str, float]], where: str, beside: int = 0) -> None:
    """Refuse more workers than fit into the nodes' resources when these are all free.

    ``beside`` is how many cores are needed beside the workers', on whatever nodes.
    """
    places = places_for(workers, nodes)
    if workers.num > places:
        raise InputError("workers.num", workers.num, f"{where} has room for {_count(workers, places)} each")
    if workers.num > places_for(workers, nodes, beside):
        allowed = f"{where} has {_cpus(nodes) - workers.num * workers.cpus:g} CPU beside the {workers.num} workers'"
        raise InputError("data.decoding_cpus", beside, allowed)


def _count(workers: Workers, number: int | None = None) -> str:
    """How many workers, and how large, in words."""
    return f"{workers.num if number is None else number} workers of {each_of(workers)}"


def each_of(workers: Workers) -> str:
    """What each of the workers needs, in words."""
    return f"{workers.cpus} CPU" + (f" and {workers.gpus} GPU" if workers.gpus else "")


def start_here(kind: type) -> Any:
    """Start an actor on this process's node, where it lives exactly as long as the node does."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(kind).remote()


def places_for(workers: Workers, nodes: Sequence[dict[str, float]], beside: int = 0) -> int:
    """How many of the workers the nodes' resources hold when these are all free, and leave ``beside`` cores."""
    places = 0
    for node in nodes:
        fits = [node.get("CPU", 0.0) // workers.cpus]
        if workers.gpus:
            fits.append(node.get("GPU", 0.0) // workers.gpus)
        places += int(min(fits))
    return max(0, min(places, int((_cpus(nodes) - beside) // workers.cpus)))


def _cpus(nodes: Sequence[dict[str, float]]) -> float:
    return sum(node.get("CPU", 0.0) for node in nodes)


def local_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def job_submission_id() -> str | None:
    """Id of the submitted Ray job that this driver is the entry point of, or None."""
    config = json.loads(os.environ.get(JOB_CONFIG_VARIABLE) or "{}")
    submission = config.get("metadata", {}).get("job_submission_id")
    return str(submission) if submission else None
