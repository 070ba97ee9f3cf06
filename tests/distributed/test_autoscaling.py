"""What a cluster that grows can give."""

from __future__ import annotations

import pytest
import ray
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

from distsens.distributed.cluster import check_capacity_of_cluster
from distsens.errors import InputError
from distsens.experiment import Workers


@pytest.mark.ray
def test_a_cluster_has_room_for_what_its_autoscaler_may_add(local_ray: None) -> None:
    check_capacity_of_cluster(Workers(num=2))
    with pytest.raises(InputError, match="the cluster has room for 2 workers of 1 CPU each"):
        check_capacity_of_cluster(Workers(num=5))
    # What an autoscaler tells the cluster of itself.
    group = NodeGroupConfig(name="workers", resources={"CPU": 4}, max_count=3)
    config = ClusterConfig(node_group_configs=[group]).SerializeToString()
    GcsClient(address=ray.get_runtime_context().gcs_address).report_cluster_config(config)
    check_capacity_of_cluster(Workers(num=12))
    with pytest.raises(InputError, match="the cluster, grown as far as it may, has room for 12 workers"):
        check_capacity_of_cluster(Workers(num=13))
