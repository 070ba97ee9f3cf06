"""All that is used of Ray's private API: it has no public replacement, and another release may move or change it.

Nothing else here imports a name of Ray's that begins with an underscore or lies behind one, which a test sees to, and
another one says what has changed. `ray` is bounded in pyproject.toml by the release that they were seen to pass with.

Of Ray Train, whose public callbacks run on its workers or after a failure, and whose policy is to restart workers after
every failure or after none:

- ``ControllerCallback`` hears where the controller is when it starts, so that a driver can end it.
- ``DefaultFailurePolicy`` and ``FailureDecision`` are what decides on a restart, in a trainer that takes
  another than Train's: :class:`TrainerWith`.
- ``RayTrainError`` and its kin are the failures that a policy and a user are told of; only those of the whole training
  are public.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import ray
import ray._private.services
import ray._private.state
import ray._private.worker
import ray.train
from ray._private import ray_constants
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import (
    RayTrainError,
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

__all__ = [
    "JOB_CONFIG_VARIABLE",
    "ControllerCallback",
    "DefaultFailurePolicy",
    "FailureDecision",
    "RayTrainError",
    "TrainerWith",
    "WorkerHealthCheckFailedError",
    "WorkerHealthCheckTimeoutError",
    "error_of_worker",
    "found_address",
    "grows",
    "is_head",
    "largest_resources",
    "loopback_stays",
    "node_of",
    "sessions_of_their_own",
]

JOB_CONFIG_VARIABLE = RAY_JOB_CONFIG_JSON_ENV_VAR
"""Environment variable by which a submitted job's process is told of it, before it has joined the cluster."""


_WHICH_CLUSTER = "/ray.rpc.NodeInfoGcsService/GetClusterId"


@contextmanager
def sessions_of_their_own() -> Iterator[None]:
    """The processes of a Ray that is started in the block stand in sessions of their own.

    In the driver's process group they would hear what it is told (systemd, Slurm and Kubernetes tell the whole group,
    and so does a terminal that is closed) and die before the driver has ended its run. They end with it all the same:
    Ray has the kernel kill them when their parent dies.
    """
    before = ray._private.services.ConsolePopen

    class Popen(before):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings, start_new_session=True)

    ray._private.services.ConsolePopen = Popen
    try:
        yield
    finally:
        ray._private.services.ConsolePopen = before


@contextmanager
def loopback_stays() -> Iterator[None]:
    """A Ray that is started in the block listens on loopback alone, and 127.0.0.1 is where one is joined that says so.

    On Linux Ray takes the machine's outer address instead, even where it is told 127.0.0.1; its servers listen on
    loopback where the node's address is 127.0.0.1, as on macOS and Windows. By this constant it tells them apart.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def found_address() -> str:
    """HOST:PORT of the Ray that ``auto`` means; :class:`ConnectionError` where there is none.

    ``ray.init`` joins it as soon as it has found it, and waits long for one that has died.
    """
    return str(ray._private.services.canonicalize_bootstrap_address("auto"))


def is_head(host: str, port: int, seconds: float) -> bool:
    """Whether a cluster's control store listens there; :class:`TimeoutError` where nothing is said for some seconds.

    ``ray.init`` asks the same again and again, with a warning each second. Over TLS it is not asked here.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_WHICH_CLUSTER)(b"", timeout=seconds)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError from error
            # One that asks for another token is one, too.
            return error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED)
    return True


def largest_resources() -> dict[str, float] | None:
    """What the connected cluster has when its autoscaler has added all that it may; None where that is not said."""
    largest: dict[str, float] | None = ray._private.state.state.get_max_resources_from_cluster_config()
    return largest


def grows() -> bool:
    """Whether the connected cluster has an autoscaler that may add nodes, which nothing public tells.

    Such a one has a type for every node, of its configuration. A cluster made by hand has none, or one that only
    watches and gives each node a type of its own.
    """
    gcs = ray._private.worker.global_worker.gcs_client
    if any(node.instance_id for node in gcs.get_all_node_info().values()):  # autoscaler v2
        return True
    status = json.loads(gcs.internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS.encode(), None) or b"{}")  # and v1
    types = (status.get("autoscaler_report") or {}).get("node_type_mapping") or {}
    return any(not kind.startswith("node_") for kind in types.values())


def node_of(actor: Any) -> Any:
    """Reference of the id of the node that an actor is on, once it is there, whatever it is."""
    return actor.__ray_call__.options(max_task_retries=-1).remote(_node_of)


def _node_of(_: Any) -> str:
    return str(ray.get_runtime_context().get_node_id())


def error_of_worker(failure: BaseException) -> BaseException:
    """What a worker's own code raised, without what Ray Train has put around it."""
    error: BaseException = failure._base_exc if isinstance(failure, UserExceptionWithTraceback) else failure
    return error


class TrainerWith(TorchTrainer):
    """A trainer whose failures are decided on by a policy of its own, made with the run's ``FailureConfig``."""

    policy: type[DefaultFailurePolicy]

    def _initialize_and_run_controller(self, **parts: Any) -> ray.train.Result:
        parts["failure_policy"] = self.policy(self.run_config.failure_config)
        result: ray.train.Result = super()._initialize_and_run_controller(**parts)
        return result
