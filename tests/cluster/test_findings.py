"""What is wrong with manifests is found: each mistake is planted into the production overlay, which has none."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.cluster.findings import findings, quantity
from tests.cluster.manifests import Object, namespace_of, overlay, secrets_of_readme

Plant = Callable[[Any], object]


def put(path: str, value: object) -> Plant:
    """Set a field, or append to a list at ``-``. In a path, ``~`` stands for the slash of a name."""

    def plant(one: Any) -> None:
        parent, key = _find(one, path)
        if key == "-":
            parent.append(value)
        else:
            parent[key] = value

    return plant


def drop(path: str) -> Plant:
    """Remove a field."""

    def plant(one: Any) -> None:
        parent, key = _find(one, path)
        del parent[key]

    return plant


def rename(path: str, name: str) -> Plant:
    """Call a field something else."""

    def plant(one: Any) -> None:
        parent, key = _find(one, path)
        parent[name] = parent.pop(key)

    return plant


def _find(one: Any, path: str) -> tuple[Any, Any]:
    """What holds the field, and the field's key there."""
    keys = [int(key) if key.isdecimal() else key.replace("~", "/") for key in path.split("/")]
    for key in keys[:-1]:
        one = one[key]
    return one, keys[-1]


HEAD = "spec/headGroupSpec/template/spec"
HEAD_CONTAINER = f"{HEAD}/containers/0"
WORKER = "spec/workerGroupSpecs/0/template/spec"
WORKER_CONTAINER = f"{WORKER}/containers/0"
SUBMITTER = "spec/submitterPodTemplate/spec/containers/0"
REDIS = "spec/template/spec"
REDIS_CONTAINER = f"{REDIS}/containers/0"

MISTAKES = [
    # Form: KubeRay's kinds.
    ("RayCluster", "distsens", put("spec/workerGroupSpecs/0/maxReplica", 4), "'maxReplica' was unexpected"),
    ("RayCluster", "distsens", put("spec/enableInTreeAutoScaling", True), "'enableInTreeAutoScaling' was unexpected"),
    (
        "RayCluster",
        "distsens",
        rename(f"{HEAD_CONTAINER}/livenessProbe", "livenesProbe"),
        "'livenesProbe' was unexpect",
    ),
    (
        "RayCluster",
        "distsens",
        rename(f"{HEAD_CONTAINER}/readinessProbe/httpGet", "httpget"),
        "'httpget' was unexpected",
    ),
    ("RayCluster", "distsens", put("spec/workerGroupSpecs/0/minReplicas", "0"), "'0' is not of type 'integer'"),
    ("RayCluster", "distsens", put("spec/headGroupSpec/rayStartParams/num-cpus", 0), "0 is not of type 'string'"),
    ("RayCluster", "distsens", put("spec/authOptions/mode", "tokens"), "'tokens' is not one of"),
    ("RayCluster", "distsens", put("spec/autoscalerOptions/version", "v3"), "'v3' is not one of"),
    ("RayCluster", "distsens", drop("spec/headGroupSpec"), "'headGroupSpec' is a required property"),
    ("RayCluster", "distsens", drop("spec/workerGroupSpecs/0/groupName"), "'groupName' is a required property"),
    ("RayCluster", "distsens", put(f"{WORKER_CONTAINER}/resources/limits/memory", "28 GB"), "'28 GB' does not match"),
    ("RayCluster", "distsens", put("apiVersion", "ray.io/v2"), "Couldn't find schema"),
    ("RayJob", "train", put("spec/submissionMode", 1), "1 is not of type 'string'"),
    ("RayJob", "train", put("spec/entryPoint", "python"), "'entryPoint' was unexpected"),
    ("RayJob", "train", put("spec/submitterConfig/backoffLimit", "2"), "'2' is not of type 'integer'"),
    # Form: Kubernetes' own.
    (
        "StatefulSet",
        "redis",
        rename(f"{REDIS_CONTAINER}/livenessProbe", "livelinessProbe"),
        "'livelinessProbe' was unexp",
    ),
    ("StatefulSet", "redis", put("spec/replicas", "one"), "'one' is not"),
    ("StatefulSet", "redis", drop("spec/selector"), "'selector' is a required property"),
    ("NetworkPolicy", "redis", rename("spec/podSelector", "podselector"), "'podselector' was unexpected"),
    ("PersistentVolumeClaim", "data", put("spec/resources/requests/storage", "200 GB"), "'200 GB' is no quantity"),
    # References.
    (
        "RayCluster",
        "distsens",
        put(f"{HEAD_CONTAINER}/envFrom/0/configMapRef/name", "setting"),
        "setting is not declared",
    ),
    (
        "RayCluster",
        "distsens",
        put(f"{HEAD_CONTAINER}/env/0/valueFrom/secretKeyRef/name", "ml"),
        "Secret ml is not decl",
    ),
    (
        "RayCluster",
        "distsens",
        put(f"{HEAD_CONTAINER}/env/0/valueFrom/secretKeyRef/key", "user"),
        "mlflow has no key user",
    ),
    ("RayCluster", "distsens", put(f"{HEAD}/serviceAccountName", "ray"), "service account ray is not declared"),
    (
        "RayCluster",
        "distsens",
        put(f"{HEAD}/volumes/0/persistentVolumeClaim/claimName", "dat"),
        "claim dat is not decl",
    ),
    ("RayCluster", "distsens", put(f"{HEAD_CONTAINER}/volumeMounts/0/name", "datum"), "volume datum is not declared"),
    (
        "RayCluster",
        "distsens",
        put("spec/gcsFaultToleranceOptions/redisAddress", "redis:6380"),
        "redis:6380 is no declared",
    ),
    (
        "RayCluster",
        "distsens",
        put(f"{HEAD_CONTAINER}/livenessProbe/httpGet/port", 52356),
        "port 52356, which the pod has",
    ),
    ("RayJob", "train", put("spec/clusterSelector/ray.io~cluster", "ray"), "cluster ray is not declared"),
    (
        "RayJob",
        "train",
        put(f"{SUBMITTER}/envFrom/0/configMapRef/name", "setting"),
        "ConfigMap setting is not declared",
    ),
    (
        "StatefulSet",
        "redis",
        put(f"{REDIS}/volumes/0/configMap/name", "redis-conf"),
        "config map redis-conf is not decl",
    ),
    # Selectors and ports.
    ("NetworkPolicy", "dashboard", put("spec/podSelector/matchLabels/ray.io~node-type", "haed"), "selects no pod"),
    (
        "NetworkPolicy",
        "dashboard",
        put("spec/ingress/0/ports/0/port", "dashbord"),
        "port dashbord, which distsens-head has",
    ),
    ("NetworkPolicy", "metrics", put("spec/ingress/0/ports/0/port", 8081), "port 8081, which distsens-gpu has not"),
    (
        "NetworkPolicy",
        "submitters",
        put("spec/egress/0/to/0/podSelector/matchLabels/ray.io~cluster", "x"),
        "peer of egress",
    ),
    ("NetworkPolicy", "redis-clients", put("spec/egress/0/ports/0/port", 6380), "port 6380, which redis has not"),
    ("NetworkPolicy", "dns", put("spec/policyTypes", ["Ingress"]), "rules of egress that do not hold"),
    ("NetworkPolicy", "dns", put("spec/policyTypes", ["Egres"]), "unknown policy types {'Egres'}"),
    ("Service", "redis", put("spec/selector/app.kubernetes.io~name", "valkey"), "selects no pod"),
    ("Service", "redis", put("spec/ports/0/targetPort", "rediss"), "port rediss, which redis has not"),
    ("PodDisruptionBudget", "head", put("spec/selector/matchLabels/ray.io~cluster", "ray"), "selects no pod"),
    ("PodDisruptionBudget", "head", put("spec", {"maxUnavailable": 1, "selector": {}}), "counts by a scale"),
    # Security.
    ("RayCluster", "distsens", put(f"{HEAD}/securityContext/runAsNonRoot", False), "ray-head: may run as root"),
    ("RayCluster", "distsens", put(f"{WORKER}/securityContext/runAsUser", 0), "ray-worker: may run as root"),
    ("RayCluster", "distsens", drop("spec/autoscalerOptions/securityContext"), "autoscaler: may gain privileges"),
    ("RayCluster", "distsens", put(f"{WORKER_CONTAINER}/securityContext/privileged", True), "is privileged"),
    ("RayCluster", "distsens", put(f"{WORKER}/hostNetwork", True), "is in a namespace of the host"),
    ("RayCluster", "distsens", put(f"{HEAD}/volumes/-", {"name": "h", "hostPath": {"path": "/"}}), "path of the host"),
    ("StatefulSet", "redis", drop(f"{REDIS_CONTAINER}/securityContext/capabilities"), "redis: has capabilities"),
    ("StatefulSet", "redis", drop(f"{REDIS}/securityContext/seccompProfile"), "redis: has no seccomp profile"),
    # Resources and probes.
    ("RayCluster", "distsens", drop(f"{WORKER_CONTAINER}/resources/limits/memory"), "has no limit of memory"),
    (
        "RayCluster",
        "distsens",
        put(f"{WORKER_CONTAINER}/resources/requests/memory", "29Gi"),
        "more memory than its limit",
    ),
    ("RayCluster", "distsens", drop(f"{WORKER_CONTAINER}/livenessProbe"), "ray-worker: has no livenessProbe"),
    ("RayJob", "train", drop(f"{SUBMITTER}/resources"), "submitter: has no request of cpu"),
    # Secrets in files.
    (
        "RayCluster",
        "distsens",
        put(f"{HEAD_CONTAINER}/env/-", {"name": "RAY_AUTH_TOKEN", "value": "x"}),
        "RAY_AUTH_TOKEN",
    ),
    (
        "RayCluster",
        "distsens",
        put("spec/gcsFaultToleranceOptions/redisPassword", {"value": "x"}),
        "redisPassword stands",
    ),
    ("ConfigMap", "settings", put("data/AWS_SECRET_ACCESS_KEY", "x"), "AWS_SECRET_ACCESS_KEY stands in the file"),
    ("ConfigMap", "settings", put("data/MLFLOW_TRACKING_URI", "http://me:x@mlflow"), "a password stands in an address"),
]


def test_the_overlay_itself_has_none() -> None:
    assert _found(list(overlay("gpu-prod"))) == []


@pytest.mark.parametrize(("kind", "name", "plant", "found"), MISTAKES, ids=[mistake[3] for mistake in MISTAKES])
def test_a_mistake_is_found(kind: str, name: str, plant: Plant, found: str) -> None:
    objects = copy.deepcopy(list(overlay("gpu-prod")))
    (one,) = (one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)
    plant(one)
    assert any(found in message for message in _found(objects)), _found(objects)


@pytest.mark.parametrize(
    ("kind", "name", "found"),
    [
        ("ServiceAccount", "distsens", "service account distsens is not declared"),
        ("ConfigMap", "settings", "ConfigMap settings is not declared"),
        ("Service", "redis", "redis:6379 is no declared service"),
        ("StatefulSet", "redis", "Service redis: selects no pod"),
        ("RayCluster", "distsens", "RayJob train: cluster distsens is not declared"),
    ],
)
def test_what_is_left_out_is_missed(kind: str, name: str, found: str) -> None:
    objects = [one for one in overlay("gpu-prod") if (one["kind"], one["metadata"]["name"]) != (kind, name)]
    assert any(found in message for message in _found(objects))


def test_a_secret_belongs_into_no_file() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "redis"}, "stringData": {"password": "x"}}
    assert "Secret redis: is a secret in a file" in _found([*overlay("gpu-prod"), secret])


def test_quantities_are_numbers() -> None:
    assert [quantity(text) for text in ("500m", "2", "1k", "1Ki", "3M", "3Mi", "1Gi", 4)] == [
        *(0.5, 2, 1000, 1024, 3_000_000, 3 * 1024**2, 1024**3, 4)
    ]


def _found(objects: Sequence[Object]) -> list[str]:
    return findings(objects, secrets_of_readme(namespace_of(objects)))
