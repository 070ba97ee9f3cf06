"""What is wrong with Kubernetes manifests: by the published schemas, and by what these cannot see."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.cluster.manifests import Object, Pod, pods, selects

_CRDS = Path(__file__).with_name("schemas") / "kuberay-1.7.0.yaml.xz"
_QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(m|u|n|k|Ki|[MGTPE]i?|[eE][+-]?\d+)?")
_FACTORS = {"m": Decimal("1e-3"), "": Decimal(1), "k": Decimal(1000), "Ki": Decimal(1024)} | {
    letter + suffix: Decimal(base) ** power
    for power, letter in enumerate("MGTPE", start=2)
    for suffix, base in (("", 1000), ("i", 1024))
}
_SECRET_NAME = re.compile(r"password|passwd|token|secret|credential|api_?key|access_?key", re.IGNORECASE)


def findings(objects: Sequence[Object], secrets: Sequence[Object]) -> list[str]:
    """Everything that is wrong with the manifests of one namespace, given the Secrets that its users create."""
    wrong = [f"{_name(one)}: {message}" for one in objects for message in schema_findings(one)]
    if wrong:
        return wrong  # what does not have its form cannot be read further
    every_pod = pods(objects)
    wrong += [f"{pod.name}: {message}" for pod in every_pod for message in _pod_findings(pod, objects, secrets)]
    for one in objects:
        wrong += [f"{_name(one)}: {message}" for message in _object_findings(one, objects, secrets, every_pod)]
    return wrong


def schema_findings(one: Object) -> list[str]:
    """What the schema of the object's kind refuses, unknown fields included."""
    return list(_schema_findings(json.dumps(one, sort_keys=True)))


@cache
def _schema_findings(document: str) -> tuple[str, ...]:
    one = json.loads(document)
    kind = (one["apiVersion"], one["kind"])
    if kind in _kuberay():
        errors = _kuberay()[kind].iter_errors(one)
        return tuple(f"{_path(error.absolute_path)}: {error.message}" for error in errors)
    try:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{_path(error.absolute_path)}: {error.message}",)
    except kubernetes_validate.SchemaNotFoundError as error:
        return (error.message,)
    return ()


@cache
def _kuberay() -> dict[tuple[str, str], jsonschema.Draft202012Validator]:
    """Validators of KubeRay's kinds."""
    validators = {}
    for definition in yaml.load_all(lzma.decompress(_CRDS.read_bytes()), yaml.CSafeLoader):
        names = definition["spec"]
        for version in names["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            # The API server validates these two itself, as it does for every kind.
            schema["properties"] |= {"metadata": {"type": "object", "required": ["name"]}}
            schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
            kind = (f"{names['group']}/{version['name']}", names["names"]["kind"])
            validators[kind] = jsonschema.Draft202012Validator(schema)
    return validators


def _strict(schema: Any) -> Any:
    """Kubernetes' dialect of OpenAPI as a JSON schema that refuses unknown fields, which the API server would drop."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(strict.get("properties"), dict) and not strict.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    if strict.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
    if strict.get("nullable"):
        strict["type"] = [strict["type"], "null"]
    return strict


def _pod_findings(pod: Pod, objects: Sequence[Object], secrets: Sequence[Object]) -> Iterator[str]:
    account = pod.spec.get("serviceAccountName")
    if account is not None and not _declared(objects, "ServiceAccount", account):
        yield f"service account {account} is not declared"
    declared = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    for volume in declared.values():
        if (source := volume.get("configMap")) and not _declared(objects, "ConfigMap", source["name"]):
            yield f"config map {source['name']} is not declared"
        if (source := volume.get("secret")) and not _declared(secrets, "Secret", source["secretName"]):
            yield f"secret {source['secretName']} is not declared"
        if (source := volume.get("persistentVolumeClaim")) and not _declared(
            objects, "PersistentVolumeClaim", source["claimName"]
        ):
            yield f"claim {source['claimName']} is not declared"
    claimed = [
        claim["metadata"]["name"]
        for one in objects
        if one["kind"] == "StatefulSet" and one["metadata"]["name"] == pod.name
        for claim in one["spec"].get("volumeClaimTemplates", [])
    ]
    for container in pod.containers:
        name = container["name"]
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in declared and mount["name"] not in claimed:
                yield f"{name}: volume {mount['name']} is not declared"
        yield from (f"{name}: {message}" for message in _restriction_findings(pod, container))
        yield from (f"{name}: {message}" for message in _resource_findings(container))
        if pod.serves and name != "autoscaler":
            yield from (f"{name}: {message}" for message in _probe_findings(pod, container))


def _restriction_findings(pod: Pod, container: Object) -> Iterator[str]:
    """What the Pod Security Standard `restricted` refuses."""
    security = pod.spec.get("securityContext", {}) | container.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "may run as root"
    if security.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if security.get("privileged"):
        yield "is privileged"
    if security.get("capabilities", {}).get("drop") != ["ALL"] or security["capabilities"].get("add"):
        yield "has capabilities"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if any(pod.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "is in a namespace of the host"
    if any("hostPath" in volume for volume in pod.spec.get("volumes", [])):
        yield "mounts a path of the host"


def _resource_findings(container: Object) -> Iterator[str]:
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for resource in ("cpu", "memory"):
        for which, given in (("request", requests), ("limit", limits)):
            if resource not in given:
                yield f"has no {which} of {resource}"
    for resource in requests.keys() & limits.keys():
        if quantity(requests[resource]) > quantity(limits[resource]):
            yield f"requests more {resource} than its limit"


def _probe_findings(pod: Pod, container: Object) -> Iterator[str]:
    for kind in ("readinessProbe", "livenessProbe"):
        if kind not in container:
            yield f"has no {kind}"
        elif (port := container[kind].get("httpGet", {}).get("port")) is not None and str(port) not in pod.ports:
            yield f"{kind} asks for port {port}, which the pod has not"


def _object_findings(
    one: Object, objects: Sequence[Object], secrets: Sequence[Object], every_pod: Sequence[Pod]
) -> Iterator[str]:
    yield from _reference_findings(one, objects, secrets)
    yield from _secret_findings(one)
    for path, given in _walk(one):
        if path[-2:-1] in (("requests",), ("limits",)) and not _QUANTITY.fullmatch(str(given)):
            yield f"{_path(path)}: {given!r} is no quantity"
    spec = one.get("spec", {})
    match one["kind"]:
        case "Service":
            chosen = [pod for pod in every_pod if selects({"matchLabels": spec["selector"]}, pod.labels)]
            if not chosen:
                yield "selects no pod"
            for port in spec["ports"]:
                yield from _port_findings([port.get("targetPort", port["port"])], chosen)
        case "PodDisruptionBudget":
            chosen = [pod for pod in every_pod if selects(spec["selector"], pod.labels)]
            if not chosen:
                yield "selects no pod"
            if not isinstance(spec.get("minAvailable"), int) and not all(pod.scales for pod in chosen):
                yield "counts by a scale that the pods' controller has not; give minAvailable as a number"
        case "NetworkPolicy":
            yield from _policy_findings(spec, every_pod)
        case "RayCluster":
            address = spec.get("gcsFaultToleranceOptions", {}).get("redisAddress", "").partition(":")
            services = [two for two in objects if two["kind"] == "Service" and two["metadata"]["name"] == address[0]]
            if address[0] and int(address[2]) not in [
                port["port"] for two in services for port in two["spec"]["ports"]
            ]:
                yield f"Redis' address {':'.join(address[::2])} is no declared service and port"
        case "RayJob":
            cluster = spec["clusterSelector"]["ray.io/cluster"]
            if not _declared(objects, "RayCluster", cluster):
                yield f"cluster {cluster} is not declared"


def _policy_findings(spec: Object, every_pod: Sequence[Pod]) -> Iterator[str]:
    if unknown := set(spec["policyTypes"]) - {"Ingress", "Egress"}:
        yield f"unknown policy types {unknown}"
    chosen = [pod for pod in every_pod if selects(spec["podSelector"], pod.labels)]
    if not chosen:
        yield "selects no pod"
    for kind, direction, side in (("Ingress", "ingress", "from"), ("Egress", "egress", "to")):
        if spec.get(direction) and kind not in spec["policyTypes"]:
            yield f"has rules of {direction} that do not hold, as its policy types lack {kind}"
        for rule in spec.get(direction, []):
            peers = [peer for peer in rule.get(side, []) if "podSelector" in peer and "namespaceSelector" not in peer]
            targets = list(chosen) if direction == "ingress" else []
            for peer in peers:
                matched = [pod for pod in every_pod if selects(peer["podSelector"], pod.labels)]
                if not matched:
                    yield f"a peer of {direction} selects no pod"
                targets += matched if direction == "egress" else []
            if targets:
                yield from _port_findings([port["port"] for port in rule.get("ports", [])], targets)


def _port_findings(ports: Sequence[int | str], targets: Sequence[Pod]) -> Iterator[str]:
    for port in ports:
        for pod in targets:
            if str(port) not in pod.ports:
                yield f"names port {port}, which {pod.name} has not"


def _reference_findings(one: Object, objects: Sequence[Object], secrets: Sequence[Object]) -> Iterator[str]:
    """Variables and credentials taken from a ConfigMap or Secret, or a key of one, that nobody declares."""
    for path, value in _walk(one):
        for field, kind, declared in (
            ("configMapRef", "ConfigMap", objects),
            ("configMapKeyRef", "ConfigMap", objects),
            ("secretRef", "Secret", secrets),
            ("secretKeyRef", "Secret", secrets),
        ):
            if path[-2:] != (field, "name"):
                continue
            source = _declared(declared, kind, value)
            if source is None:
                yield f"{_path(path)}: {kind} {value} is not declared"
                continue
            key = _at(one, path[:-1]).get("key")
            if key is not None and key not in source.get("data", {}):
                yield f"{_path(path)}: {kind} {value} has no key {key}"


def _secret_findings(one: Object) -> Iterator[str]:
    """Secret values that stand in a manifest."""
    if one["kind"] == "Secret":
        yield "is a secret in a file"
    for path, value in _walk(one):
        parent = _at(one, path[:-1])
        name = parent.get("name", path[-2]) if path[-1] == "value" and isinstance(parent, dict) else path[-1]
        is_setting = path[-1] == "value" or path[0] == "data"
        if is_setting and isinstance(value, str) and value and _SECRET_NAME.search(str(name)):
            yield f"{_path(path)}: the value of {name} stands in the file"
        if isinstance(value, str) and re.search(r"://[^/\s]+:[^/\s]+@", value):
            yield f"{_path(path)}: a password stands in an address"


def quantity(text: str | int) -> Decimal:
    """``"500m"`` and ``"16Gi"`` as numbers."""
    number, suffix = re.fullmatch(r"([\d.]+)(\D*)", str(text)).groups()  # type: ignore[union-attr]
    return Decimal(number) * _FACTORS[suffix]


def _declared(objects: Sequence[Object], kind: str, name: str) -> Object | None:
    return next((one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name), None)


def _walk(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """All values that hold no others, with their paths."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _walk(below, (*path, key))
    elif isinstance(value, list):
        for position, below in enumerate(value):
            yield from _walk(below, (*path, position))
    else:
        yield path, value


def _at(value: Any, path: Sequence[str | int]) -> Any:
    for key in path:
        value = value[key]
    return value


def _name(one: Object) -> str:
    return f"{one['kind']} {one['metadata'].get('name')}"


def _path(path: Any) -> str:
    return ".".join(map(str, path))
