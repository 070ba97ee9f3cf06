"""The Kubernetes manifests: what holds for both overlays."""

from __future__ import annotations

import importlib.util
import re
import shlex
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement

from distsens.distributed.cluster import check_capacity
from distsens.errors import InputError
from distsens.experiment import Workers
from tests.cluster.findings import findings, quantity
from tests.cluster.manifests import KUBERNETES, Object, Pod, namespace_of, overlay, pods, secrets_of_readme
from tests.cluster.network import Stranger, lets_through

ROOT = KUBERNETES.parents[1]
JOBS = ("train", "tune", "evaluate", "analyze")
# What a job misses here once it has understood its command: the model to judge, the data set, GPUs, a bucket.
MISSING = ("model", "data.root", "workers.num", "storage.path")


@pytest.fixture(scope="module", params=["dev", "gpu-prod"])
def objects(request: pytest.FixtureRequest) -> tuple[Object, ...]:
    return overlay(request.param)


@pytest.fixture(scope="module")
def cluster(objects: Sequence[Object]) -> Object:
    (one,) = (one for one in objects if one["kind"] == "RayCluster")
    spec: Object = one["spec"]
    return spec


@pytest.fixture(scope="module")
def settings(objects: Sequence[Object]) -> Mapping[str, str]:
    (one,) = (one for one in objects if one["kind"] == "ConfigMap" and one["metadata"]["name"] == "settings")
    data: dict[str, str] = one["data"]
    return data


def test_nothing_is_wrong_with_the_manifests(objects: Sequence[Object]) -> None:
    assert findings(objects, secrets_of_readme(namespace_of(objects))) == []


def test_the_readme_creates_no_secret_that_nobody_reads(objects: Sequence[Object]) -> None:
    read = {(reference["name"], reference["key"]) for reference in _secret_references(list(objects))}
    made = secrets_of_readme(namespace_of(objects))
    assert read == {(one["metadata"]["name"], key) for one in made for key in one["data"]}


def test_all_is_in_one_namespace_which_refuses_privileged_pods(objects: Sequence[Object]) -> None:
    (namespace,) = (one["metadata"] for one in objects if one["kind"] == "Namespace")
    everything = {one["metadata"]["namespace"] for one in objects if one["kind"] != "Namespace"}
    assert everything == {namespace_of(objects)}
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_pod_but_redis_runs_the_same_image_of_the_overlay(objects: Sequence[Object]) -> None:
    images = {container["image"] for pod in pods(objects) if pod.name != "redis" for container in pod.containers}
    assert images == {"registry.example.org/distsens:0.1.0"}


def test_ray_is_of_the_version_that_the_image_is_made_with(cluster: Object) -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    (locked,) = (Requirement(line.removesuffix("\\")) for line in lines if line.startswith("ray=="))
    assert f"=={cluster['rayVersion']}" == str(locked.specifier)


def test_ray_asks_for_a_token(cluster: Object) -> None:
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_head_does_no_work(cluster: Object) -> None:
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert "gpu" not in str(head["template"]["spec"]["containers"])


def test_workers_are_there_only_while_there_is_work(cluster: Object) -> None:
    assert cluster["enableInTreeAutoscaling"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"]
        assert "replicas" not in group  # applied again, it would end the workers of a running job


def test_production_has_gpus_and_development_none() -> None:
    for name, gpus in (("dev", None), ("gpu-prod", "1")):
        (one,) = (one for one in overlay(name) if one["kind"] == "RayCluster")
        (group,) = one["spec"]["workerGroupSpecs"]
        spec = group["template"]["spec"]
        assert spec["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") == gpus
        assert ("tolerations" in spec) == (gpus is not None)


def test_a_lost_head_comes_back_as_itself(cluster: Object) -> None:
    options = cluster["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "redis:6379"
    assert options["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}


def test_only_the_head_has_a_token_of_the_api_server(objects: Sequence[Object]) -> None:
    (account,) = (one for one in objects if one["kind"] == "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert {pod.name for pod in pods(objects) if pod.spec.get("automountServiceAccountToken")} == {
        "distsens-head",
        "distsens-redis-cleanup",
    }


def test_there_is_a_job_for_each_of_ours_and_one_label_to_create_it_by(objects: Sequence[Object]) -> None:
    jobs = [one for one in objects if one["kind"] == "RayJob"]
    assert sorted(one["metadata"]["name"] for one in jobs) == sorted(JOBS)
    for one in jobs:
        name = one["metadata"]["name"]
        assert one["metadata"]["labels"]["app.kubernetes.io/component"] == name
        assert one["spec"]["entrypoint"].startswith(f"python jobs/{name}.py ")


@pytest.mark.parametrize("name", JOBS)
def test_the_job_understands_its_command(
    name: str,
    objects: Sequence[Object],
    settings: Mapping[str, str],
    moto: Mapping[str, str],
    use_aws: Callable[[Mapping[str, str]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which looks for what is not there only after all of its words were found to be in order."""
    job = _load(name)
    use_aws(moto)
    monkeypatch.chdir(tmp_path)
    for variable in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "DISTSENS_DATA"):
        monkeypatch.delenv(variable, raising=False)
    (spec,) = (one["spec"] for one in objects if one["kind"] == "RayJob" and one["metadata"]["name"] == name)
    # As the submitter's shell expands it, which knows these variables and no others.
    words = shlex.split(string.Template(spec["entrypoint"]).substitute(settings))
    with pytest.raises(InputError, match="weigth"):
        job.main([*words[2:], "--dry-run", "--weigth", "1"])
    with pytest.raises(InputError) as refused:
        job.main([*words[2:], "--dry-run"])
    assert refused.value.field in MISSING, refused.value


def test_the_cluster_can_grow_as_far_as_each_job_asks(objects: Sequence[Object], cluster: Object) -> None:
    nodes = []
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        node = {"CPU": float(quantity(limits["cpu"])), "GPU": float(quantity(limits.get("nvidia.com/gpu", "0")))}
        nodes += [node] * group["maxReplicas"]
    for one in (one for one in objects if one["kind"] == "RayJob"):
        asked = dict(re.findall(r"--workers\.(num|cpus|gpus) (\d+)", one["spec"]["entrypoint"]))
        check_capacity(Workers(**{key: int(value) for key, value in asked.items()}), nodes, one["metadata"]["name"])


class TestTheNetwork:
    """Who reaches whom, by all policies together."""

    @pytest.fixture
    def reaches(self, objects: Sequence[Object]) -> Callable[..., bool]:
        policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
        by_name = {pod.name: pod for pod in pods(objects)}
        (group,) = (name for name in by_name if name in ("distsens-gpu", "distsens-cpu"))
        known = {"head": by_name["distsens-head"], "worker": by_name[group], "redis": by_name["redis"]} | {
            "submitter": by_name["train"],
            "redis-cleanup": by_name["distsens-redis-cleanup"],
            "operator": Stranger("kuberay-system", (("app.kubernetes.io/name", "kuberay-operator"),)),
            "dns": Stranger("kube-system", (("k8s-app", "kube-dns"),)),
            "a notebook": Stranger("platform"),
            "prometheus": Stranger("monitoring"),
            "somebody else": Stranger("default"),
            "mlflow": Stranger("mlflow"),
            "the internet": Stranger(address="203.0.113.7"),
            "metadata": Stranger(address="169.254.169.254"),
        }

        def reaches(source: str, target: str, port: int, protocol: str = "TCP") -> bool:
            return lets_through(policies, known[source], known[target], port, protocol)

        return reaches

    def test_rays_nodes_reach_one_another_at_any_port(self, reaches: Callable[..., bool]) -> None:
        assert reaches("worker", "head", 6379)
        assert reaches("head", "worker", 10002)
        assert reaches("worker", "worker", 23456)

    @pytest.mark.parametrize("source", ["operator", "submitter", "a notebook"])
    def test_the_dashboard_is_for_those_who_submit(self, source: str, reaches: Callable[..., bool]) -> None:
        assert reaches(source, "head", 8265)
        assert not reaches(source, "head", 6379)
        assert not reaches(source, "worker", 52365)

    @pytest.mark.parametrize("port", [6379, 8080, 8265, 10001, 52365])
    @pytest.mark.parametrize("target", ["head", "worker", "redis"])
    def test_nobody_else_reaches_anything(self, target: str, port: int, reaches: Callable[..., bool]) -> None:
        assert not reaches("somebody else", target, port)
        assert not reaches("the internet", target, port)

    def test_prometheus_reaches_the_metrics_and_nothing_else(self, reaches: Callable[..., bool]) -> None:
        assert reaches("prometheus", "head", 8080)
        assert reaches("prometheus", "worker", 8080)
        assert not reaches("prometheus", "head", 8265)

    def test_redis_is_the_heads(self, reaches: Callable[..., bool]) -> None:
        assert reaches("head", "redis", 6379)
        assert reaches("redis-cleanup", "redis", 6379)
        assert not reaches("worker", "redis", 6379)
        assert not reaches("submitter", "redis", 6379)
        assert not reaches("redis", "the internet", 443)

    def test_every_pod_may_ask_for_names(self, reaches: Callable[..., bool]) -> None:
        for source in ("head", "worker", "submitter", "redis"):
            assert reaches(source, "dns", 53, "UDP")
            assert not reaches(source, "dns", 443)

    def test_only_the_head_reaches_mlflow(self, reaches: Callable[..., bool], settings: Mapping[str, str]) -> None:
        address = urlsplit(settings["MLFLOW_TRACKING_URI"])
        assert (address.hostname or "").split(".")[1:] == ["mlflow", "svc"]
        assert address.port is not None
        assert reaches("head", "mlflow", address.port)
        assert not reaches("worker", "mlflow", address.port)
        assert not reaches("submitter", "mlflow", address.port)

    def test_the_autoscaler_reaches_the_api_server(self, reaches: Callable[..., bool]) -> None:
        assert reaches("head", "the internet", 6443)
        assert not reaches("worker", "the internet", 6443)

    def test_nobody_reaches_the_nodes_metadata(self, reaches: Callable[..., bool]) -> None:
        for source in ("head", "worker", "submitter", "redis"):
            for port in (80, 443):
                assert not reaches(source, "metadata", port)


def test_head_and_workers_reach_the_storage_that_the_settings_name(
    objects: Sequence[Object], settings: Mapping[str, str]
) -> None:
    policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
    endpoint = urlsplit(settings.get("AWS_ENDPOINT_URL", ""))
    if endpoint.hostname:
        storage, port = Stranger(endpoint.hostname.split(".")[1]), endpoint.port
    else:
        storage, port = Stranger(address="203.0.113.7"), 443
    assert port is not None
    ray_pods = [pod for pod in pods(objects) if pod.labels.get("ray.io/node-type") in ("head", "worker")]
    assert len(ray_pods) == 2
    for pod in ray_pods:
        assert lets_through(policies, pod, storage, port)
        assert _has_credentials(pod, objects)


def _has_credentials(pod: Pod, objects: Sequence[Object]) -> bool:
    """Whether the pod has keys from a Secret, or else a role by its service account."""
    variables = {variable["name"] for variable in pod.spec["containers"][0].get("env", [])}
    (account,) = (one for one in objects if one["kind"] == "ServiceAccount")
    has_role = bool(account["metadata"].get("annotations")) and pod.spec["serviceAccountName"] == "distsens"
    return {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= variables or has_role


def _secret_references(value: object) -> list[dict[str, str]]:
    if isinstance(value, list):
        return [one for below in value for one in _secret_references(below)]
    if not isinstance(value, dict):
        return []
    own = [value["secretKeyRef"]] if "secretKeyRef" in value else []
    return own + [one for below in value.values() for one in _secret_references(below)]


def _load(name: str) -> ModuleType:
    path = ROOT / "jobs" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(f"{name}_job_of_kubernetes", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module
