"""Kubernetes manifests as kubectl renders them, and the pods that controllers make of them."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

Object = dict[str, Any]

KUBERNETES = Path(__file__).resolve().parents[2] / "cluster" / "kubernetes"
README = KUBERNETES.parent / "README.md"


def kubectl(*arguments: str) -> str:
    """Run kubectl, the machine's or that of the test environment; it needs no cluster for what is asked of it here."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("kubectl", path=folders)
    if program is None:
        pytest.skip("no kubectl")
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True, timeout=60).stdout


def render(folder: Path) -> list[Object]:
    """What ``kubectl apply -k`` would apply."""
    return [one for one in yaml.safe_load_all(kubectl("kustomize", str(folder))) if one]


@cache
def overlay(name: str) -> tuple[Object, ...]:
    """An overlay's cluster and its jobs."""
    folder = KUBERNETES / "overlays" / name
    return (*render(folder), *render(folder / "jobs"))


def namespace_of(objects: Sequence[Object]) -> str:
    """The namespace that an overlay makes."""
    (name,) = (one["metadata"]["name"] for one in objects if one["kind"] == "Namespace")
    return str(name)


@cache
def secrets_of_readme(namespace: str) -> tuple[Object, ...]:
    """The Secrets that the README has the reader create there, by its own commands, with other values."""
    commands = re.findall(r"^kubectl (.* create secret generic .*)$", README.read_text(), re.MULTILINE)
    made = []
    for command in commands:
        words = shlex.split(command.replace("$NAMESPACE", namespace), comments=True)
        words = [re.sub(r"=\$.*", "=value", word) for word in words]
        made.append(json.loads(kubectl(*words, "--dry-run=client", "--output=json")))
    return tuple(one for one in made if one["metadata"]["namespace"] == namespace)


@dataclass(frozen=True)
class Pod:
    """A pod, or what all replicas of it have in common."""

    name: str
    namespace: str
    labels: dict[str, str]
    spec: Object
    scales: bool
    """Whether its controller has the scale subresource."""
    serves: bool = True
    """Whether it is to stay up, and so to be probed."""

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        """Ports by their names, and by their numbers as text."""
        ports = [port for container in self.containers for port in container.get("ports", [])]
        numbers = {str(port["containerPort"]): port["containerPort"] for port in ports}
        return numbers | {port["name"]: port["containerPort"] for port in ports if "name" in port}


def pods(objects: Sequence[Object]) -> list[Pod]:
    """The pods of all workloads, labelled as their controllers label them."""
    return [pod for one in objects for pod in _pods_of(one)]


def _pods_of(owner: Object) -> Iterator[Pod]:
    name, namespace, spec = owner["metadata"]["name"], owner["metadata"].get("namespace", ""), owner.get("spec", {})
    match owner["kind"]:
        case "Deployment" | "StatefulSet":
            template = spec["template"]
            yield Pod(name, namespace, template["metadata"]["labels"], template["spec"], scales=True)
        case "RayCluster":
            head = copy.deepcopy(spec["headGroupSpec"]["template"]["spec"])
            if spec.get("enableInTreeAutoscaling"):
                options = {
                    key: spec.get("autoscalerOptions", {}).get(key, {}) for key in ("resources", "securityContext")
                }
                head["containers"].append({"name": "autoscaler", "image": head["containers"][0]["image"], **options})
            given = spec["headGroupSpec"]["template"].get("metadata", {}).get("labels", {})
            yield Pod(f"{name}-head", namespace, given | _ray_labels(name, "head", "headgroup"), head, scales=False)
            if "gcsFaultToleranceOptions" in spec:
                labels = _ray_labels(name, "redis-cleanup", "headgroup")
                yield Pod(f"{name}-redis-cleanup", namespace, given | labels, head, scales=False)
            for group in spec.get("workerGroupSpecs", []):
                template, group_name = group["template"], group["groupName"]
                labels = template.get("metadata", {}).get("labels", {}) | _ray_labels(name, "worker", group_name)
                yield Pod(f"{name}-{group_name}", namespace, labels, template["spec"], scales=False)
        case "RayJob":
            labels = {"ray.io/originated-from-crd": "RayJob", "ray.io/originated-from-cr-name": name}
            yield Pod(name, namespace, labels, spec["submitterPodTemplate"]["spec"], scales=True, serves=False)


def _ray_labels(cluster: str, node_type: str, group: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "kuberay",
        "ray.io/cluster": cluster,
        "ray.io/node-type": node_type,
        "ray.io/group": group,
    }


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector matches."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        value, values = labels.get(expression["key"]), expression.get("values", [])
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[expression["operator"]]:
            return False
    return True
