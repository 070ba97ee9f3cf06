"""What a cluster can give, and joining or starting one."""

from __future__ import annotations

import json

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from distsens.distributed.cluster import (
    check_capacity,
    connected,
    job_submission_id,
    local_cpus,
    places_for,
)
from distsens.errors import InputError
from distsens.experiment import Workers

NODES = st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 16), "GPU": st.integers(0, 4)}), max_size=4)


@given(NODES, st.integers(1, 20), st.integers(1, 5), st.integers(0, 1))
def test_workers_fit_if_and_only_if_nodes_have_room_for_each_whole(
    nodes: list[dict[str, int]], number: int, cpus: int, gpus: int
) -> None:
    free = [dict(node) for node in nodes]
    placed = 0
    for node in free:  # place one by one
        while node["CPU"] >= cpus and node["GPU"] >= gpus:
            node["CPU"] -= cpus
            node["GPU"] -= gpus
            placed += 1
    workers = Workers(num=number, cpus=cpus, gpus=gpus)
    resources = [{name: float(value) for name, value in node.items()} for node in nodes]
    if number <= placed:
        check_capacity(workers, resources, "the cluster")
    else:
        with pytest.raises(InputError, match=f"the cluster has room for {placed} workers"):
            check_capacity(workers, resources, "the cluster")


@given(NODES, st.integers(1, 20), st.integers(1, 5), st.integers(1, 20))
def test_cores_beside_the_workers_are_those_that_all_nodes_together_have_left(
    nodes: list[dict[str, int]], number: int, cpus: int, beside: int
) -> None:
    workers = Workers(num=number, cpus=cpus)
    resources = [{name: float(value) for name, value in node.items()} for node in nodes]
    left = sum(node["CPU"] for node in nodes) - number * cpus
    if number > sum(node["CPU"] // cpus for node in nodes):
        with pytest.raises(InputError, match=r"^workers.num"):
            check_capacity(workers, resources, "the cluster", beside)
    elif left < beside:
        with pytest.raises(InputError, match=f"^data.decoding_cpus: got {beside}; the cluster has {left} CPU beside"):
            check_capacity(workers, resources, "the cluster", beside)
    else:
        check_capacity(workers, resources, "the cluster", beside)
        assert number <= places_for(workers, resources, beside)


def test_a_worker_is_not_split_over_two_nodes() -> None:
    with pytest.raises(InputError, match="has room for 0 workers"):
        check_capacity(Workers(num=1, cpus=4), [{"CPU": 3.0}, {"CPU": 3.0}], "the cluster")


def test_this_machine_has_at_least_one_core() -> None:
    assert local_cpus() >= 1


def test_the_submission_id_is_read_from_rays_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert job_submission_id() is None
    config = {"metadata": {"job_submission_id": "raysubmit_1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    assert job_submission_id() == "raysubmit_1"


def test_an_address_without_a_cluster_is_wrong_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with (
        pytest.raises(InputError, match="RAY_ADDRESS: got 'nonsense'; no Ray cluster can be joined there"),
        connected(),
    ):
        pytest.fail("there is nothing to join")
    assert not ray.is_initialized()
