"""The Ray cluster that a job runs on: joined where RAY_ADDRESS names one, else started on this machine for the job."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray._private.state
import ray._private.worker
import torch
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distsens.errors import InputError
from distsens.experiment import Experiment, Workers

PLACES_TIMEOUT_S = 1800
"""Seconds of waiting for a busy cluster that Ray Train counts as one failure of its controller."""

_ADDRESS = "RAY_ADDRESS"
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"

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
def connected() -> Iterator[None]:
    """Be connected to the cluster for the length of the block; a cluster that was started for it ends with it."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get(_ADDRESS):
        try:
            ray.init(address=os.environ[_ADDRESS], **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())  # of another Ray or Python, it names both in lines of their own
            raise InputError(_ADDRESS, os.environ[_ADDRESS], f"no Ray cluster can be joined there: {reason}") from None
    else:
        ray.init(address="local", num_cpus=local_cpus(), include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def check_capacity_here(workers: Workers, beside: int = 0) -> None:
    """Refuse, before a cluster is started on this machine, what it can never give. Nothing to say about others."""
    if not os.environ.get(_ADDRESS):
        here = {"CPU": float(local_cpus()), "GPU": float(torch.cuda.device_count())}
        check_capacity(workers, [here], "this machine", beside)


def check_cluster_to_join(*experiments: Experiment) -> None:
    """Join the cluster that RAY_ADDRESS names, if it does, and refuse what it can never give."""
    if os.environ.get(_ADDRESS):
        with connected():
            for experiment in experiments:
                check_capacity_of_cluster(experiment.workers, experiment.data.decoding_cpus)


def check_capacity_of_cluster(workers: Workers, beside: int = 0) -> None:
    """Refuse what the connected cluster can never give, however long one waits.

    One whose autoscaler does not say how far it may grow, as Ray's own does not, may give anything.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    try:
        check_capacity(workers, nodes, "the cluster", beside)
    except InputError:
        # Totals over all kinds of nodes: for a cluster that grows, how they are shared out is not known before.
        grown = ray._private.state.state.get_max_resources_from_cluster_config()
        if grown is not None:
            check_capacity(workers, [grown], "the cluster, grown as far as it may,", beside)
        elif not _grows():
            raise


def _grows() -> bool:
    """Whether the connected cluster has an autoscaler that may add nodes.

    Such a one has a type for every node, of its configuration. A cluster made by hand has none, or one that only
    watches and gives each node a type of its own.
    """
    gcs = ray._private.worker.global_worker.gcs_client
    if any(node.instance_id for node in gcs.get_all_node_info().values()):  # autoscaler v2
        return True
    status = json.loads(gcs.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None) or b"{}")  # autoscaler v1
    types = (status.get("autoscaler_report") or {}).get("node_type_mapping") or {}
    return any(not kind.startswith("node_") for kind in types.values())


def places_of_cluster(workers: Workers, beside: int = 0) -> int | None:
    """How many of the workers the connected cluster holds; None for one that grows and does not say how far."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    grown = ray._private.state.state.get_max_resources_from_cluster_config()
    if grown is not None:
        return max(places_for(workers, nodes, beside), places_for(workers, [grown], beside))
    return None if _grows() else places_for(workers, nodes, beside)


def check_capacity(workers: Workers, nodes: Sequence[dict[str, float]], where: str, beside: int = 0) -> None:
    """Refuse more workers than fit into the nodes' resources when these are all free.

    ``beside`` is how many cores are needed beside the workers', on whatever nodes.
    """
    places = places_for(workers, nodes)
    each = f"{workers.cpus} CPU" + (f" and {workers.gpus} GPU" if workers.gpus else "")
    if workers.num > places:
        raise InputError("workers.num", workers.num, f"{where} has room for {places} workers of {each} each")
    if workers.num > places_for(workers, nodes, beside):
        allowed = f"{where} has {_cpus(nodes) - workers.num * workers.cpus:g} CPU beside the {workers.num} workers'"
        raise InputError("data.decoding_cpus", beside, allowed)


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
    config = json.loads(os.environ.get(_JOB_CONFIG) or "{}")
    submission = config.get("metadata", {}).get("job_submission_id")
    return str(submission) if submission else None
