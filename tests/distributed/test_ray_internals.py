"""Ray's private API is used in one module, and is as that module takes it to be."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from packaging.requirements import Requirement
from packaging.version import Version
from ray.train import FailureConfig, RunConfig, ScalingConfig

from distsens.distributed import ray_internals

ROOT = Path(__file__).parents[2]
OURS = ROOT / "distsens" / "distributed" / "ray_internals.py"


def programs() -> list[Path]:
    folders = ("distsens", "jobs", "cluster", "infra", ".ci")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def private_names(code: str) -> Iterator[str]:
    """Dotted names of Ray's in a program of which a part begins with an underscore."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{one.name}" for one in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        for name in names:
            words = name.split(".")
            if words[0] == "ray" and any(word.startswith("_") and not word.endswith("__") for word in words):
                yield name


@pytest.mark.parametrize(
    "code",
    [
        "import ray._private.state",
        "from ray._private import services",
        "from ray import _raylet",
        "from ray.train.v2._internal.exceptions import RayTrainError",
        "import ray\nray._private.state.state",
        "import ray\ndef f():\n    return ray.worker._global_node",
    ],
)
def test_what_is_private_is_found(code: str) -> None:
    assert list(private_names(code))
    assert not list(private_names("import ray\nprint(ray.__version__, ray.util.state, self._ray.address)"))


def test_private_api_of_ray_is_used_in_one_module() -> None:
    assert list(private_names(OURS.read_text()))
    found = {path: list(private_names(path.read_text())) for path in programs() if path != OURS}
    assert len(found) > 100
    assert not {path: names for path, names in found.items() if names}


def test_the_installed_ray_is_one_that_pyproject_allows_and_the_next_is_not() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (needed,) = (one for one in map(Requirement, project["dependencies"]) if one.name == "ray")
    installed = Version(ray.__version__)
    assert installed in needed.specifier
    assert Version(f"{installed.major}.{installed.minor + 1}") not in needed.specifier


def test_a_trainers_failures_are_decided_on_by_its_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """That Train takes a policy where it starts its controller; what it does with it, the drills of training show."""
    given: dict[str, Any] = {}

    class Policy(ray_internals.DefaultFailurePolicy):
        pass

    class Trainer(ray_internals.TrainerWith):
        policy = Policy

    monkeypatch.setattr(
        ray_internals.TorchTrainer, "_initialize_and_run_controller", lambda _, **parts: given.update(parts)
    )
    config = RunConfig(failure_config=FailureConfig(max_failures=3), storage_path="/tmp")
    trainer = Trainer(lambda: None, scaling_config=ScalingConfig(num_workers=1), run_config=config)
    trainer._initialize_and_run_controller(failure_policy=None)
    assert isinstance(given["failure_policy"], Policy)
    assert given["failure_policy"].failure_config.max_failures == 3


@pytest.mark.ray
def test_a_cluster_that_was_made_by_hand_does_not_grow_and_an_actors_node_is_known(local_ray: None) -> None:
    assert ray_internals.grows() is False
    assert ray_internals.largest_resources() is None

    @ray.remote(num_cpus=0)
    class Anything:
        pass

    actor = Anything.remote()
    assert ray.get(ray_internals.node_of(actor)) == ray.get_runtime_context().get_node_id()
    host, port = ray.get_runtime_context().gcs_address.rsplit(":", 1)
    assert ray_internals.is_head(host, int(port), 20.0)
    ray.kill(actor)
