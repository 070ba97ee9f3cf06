"""The compose file: valid by its specification, and closed: no secret in it, no port but on loopback."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from jsonschema import Draft7Validator

FILE = Path(__file__).resolve().parents[2] / "infra" / "stack" / "compose.yaml"
SCHEMA = Path(__file__).with_name("compose-spec") / "compose-spec.json"
REFERENCE = re.compile(r"\$\{[A-Z0-9_]+:\?\}")
SECRET = re.compile(r"(?i)passw|secret|token|_key\b")


@pytest.fixture
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


def invalid(compose: dict[str, Any]) -> list[str]:
    """What the specification's schema does not allow."""
    return [f"{error.json_path}: {error.message}" for error in schema().iter_errors(compose)]


def schema() -> Draft7Validator:
    return Draft7Validator(json.loads(SCHEMA.read_text()))


def faults(compose: dict[str, Any]) -> list[str]:
    """What the specification allows, and we do not."""
    found = []
    for name, service in compose["services"].items():
        if "build" not in service and not re.search(r":[^:]*\d", service["image"]):
            found.append(f"{name}: its image has no version")
        checked = "test" in service.get("healthcheck", {}) or "ray" in service.get("command", [])[:1]
        if not checked and service["restart"] != "no":
            found.append(f"{name}: nobody sees whether it is well")
        if "no-new-privileges:true" not in service["security_opt"] or service.get("privileged"):
            found.append(f"{name}: it may gain privileges")
        found += [f"{name}: {port} is open to others" for port in service.get("ports", []) if not is_loopback(port)]
    for where, value in leaves(compose):
        variable, given = where.rpartition(".")[2], str(value)
        if (
            SECRET.search(variable)
            and "." in where
            and not REFERENCE.fullmatch(given)
            and not given.startswith("/run/")
        ):
            known = where.startswith(("secrets.", "volumes.")) or given.isdecimal()
            found += [] if known else [f"{where} is written in the file"]
    for name, config in compose["configs"].items():
        lines = [line for line in config["content"].splitlines() if SECRET.search(line) or name == "pgpass"]
        found += [f"configs.{name}: a secret is written in the file" for line in lines if not REFERENCE.search(line)]
    found += [
        f"secrets.{name} is not from the environment"
        for name, one in compose["secrets"].items()
        if {*one} != {"environment"}
    ]
    return found


def is_loopback(port: Any) -> bool:
    return isinstance(port, str) and port.startswith("127.0.0.1:")


def leaves(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    if isinstance(node, dict | list):
        for key, value in items:
            yield from leaves(value, f"{where}.{key}".lstrip("."))
    else:
        yield where, node


def test_it_is_valid_and_closed(compose: dict[str, Any]) -> None:
    assert invalid(compose) == []
    assert faults(compose) == []


def test_it_starts_the_whole_stack(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"postgres", "s3", "bucket", "mlflow", "ray-head", "ray-worker"}
    assert services["ray-worker"]["deploy"] == {"replicas": 2}
    assert services["mlflow"]["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "--app-name=basic-auth" in services["mlflow"]["command"]
    assert all(services[name]["environment"]["RAY_AUTH_MODE"] == "token" for name in ("ray-head", "ray-worker"))
    assert [name for name in services if "ports" in services[name]] == ["s3", "mlflow", "ray-head"]


def test_what_is_mounted_is_defined_and_readable_for_our_user_alone(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for kind in ("configs", "secrets"):
            for mount in service.get(kind, []):
                assert (mount if isinstance(mount, str) else mount["source"]) in compose[kind]
                assert isinstance(mount, str) or (mount["uid"], mount["mode"]) == ("1000", "0400")


def test_its_commands_are_understood(compose: dict[str, Any]) -> None:
    understand = commands()
    for service in compose["services"].values():
        program, subcommand, *arguments = map(by_default, service.get("command", ["none", "none"]))
        if program in ("ray", "mlflow"):
            understand(program, subcommand, arguments)
    with pytest.raises(click.UsageError):
        understand("ray", "start", ["--dashboard-hosts=0.0.0.0"])


def by_default(value: str) -> str:
    """The value where nobody sets a variable."""
    return re.sub(r"\$\{\w+:-(\w*)\}", r"\1", re.sub(r"\$\{\w+:\+.*\}", "", value))


def test_the_head_does_no_work_and_workers_share_the_machine_as_they_are_told(compose: dict[str, Any]) -> None:
    assert "--num-cpus=0" in compose["services"]["ray-head"]["command"]
    assert "--num-cpus=${RAY_WORKER_CPUS:-2}" in compose["services"]["ray-worker"]["command"]


def test_mlflow_answers_to_the_name_of_a_proxy_that_is_set(compose: dict[str, Any]) -> None:
    hosts = compose["services"]["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert by_default(hosts) == "mlflow:5000,localhost:5000,127.0.0.1:5000"
    assert hosts == by_default(hosts) + "${MLFLOW_SERVER_ALLOWED_HOSTS:+,${MLFLOW_SERVER_ALLOWED_HOSTS}}"


def commands() -> Callable[[str, str, list[str]], None]:
    from mlflow.cli import cli as mlflow
    from ray.scripts.scripts import cli as ray

    programs: dict[str, Any] = {"mlflow": mlflow, "ray": ray}

    def understand(program: str, subcommand: str, arguments: list[str]) -> None:
        command = programs[program].commands[subcommand]
        command.make_context(subcommand, list(arguments))

    return understand


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    "mistake",
    [
        lambda one: one["services"]["mlflow"].update(comand="x"),
        lambda one: one["services"]["mlflow"].update(ports={"5000": 5000}),
        lambda one: one["services"]["mlflow"]["depends_on"].update(postgres={"condition": "healthy"}),
        lambda one: one["services"]["s3"].update(restart=True),
        lambda one: one["secrets"]["ray-token"].update(enviroment="X"),
    ],
)
def test_what_is_invalid_is_seen(compose: dict[str, Any], mistake: Change) -> None:
    mistake(compose)
    assert invalid(compose)


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (lambda one: one["services"]["s3"].update(ports=["7070:7070"]), "open to others"),
        (lambda one: one["services"]["s3"].update(ports=["0.0.0.0:7070:7070"]), "open to others"),
        (lambda one: one["services"]["s3"].pop("healthcheck"), "is well"),
        (lambda one: one["services"]["s3"].update(image="versity/versitygw:latest"), "no version"),
        (lambda one: one["services"]["s3"].update(security_opt=[]), "privileges"),
        (lambda one: one["services"]["s3"]["environment"].update(ROOT_SECRET_ACCESS_KEY="abc"), "written in the file"),
        (lambda one: one["services"]["s3"]["environment"].update(TOKEN="${TOKEN:-abc}"), "written in the file"),
        (lambda one: one["configs"]["pgpass"].update(content="*:*:*:mlflow:abc"), "written in the file"),
        (lambda one: one["configs"]["mlflow-auth"].update(content="admin_password = abc"), "written in the file"),
        (lambda one: one["secrets"].update(token={"file": "token.txt"}), "not from the environment"),
    ],
)
def test_what_is_valid_and_open_is_seen(compose: dict[str, Any], mistake: Change, says: str) -> None:
    changed = copy.deepcopy(compose)  # YAML's aliases share their nodes
    mistake(changed)
    assert any(says in fault for fault in faults(changed))
