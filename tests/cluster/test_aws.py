"""The cluster of EC2 machines: by Ray's schema and AWS' own, by what these cannot see, and as Ray makes it."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import click
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from moto import mock_aws
from moto.ec2.models.instance_types import InstanceTypeBackend
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_NODE_STATUS
from ray.scripts.scripts import start

from distsens.distributed.cluster import check_capacity
from distsens.experiment import Workers

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "cluster" / "aws" / "ray-up.yaml"
README = ROOT / "cluster" / "README.md"
STACK = ROOT / "infra" / "aws" / "distsens.yaml"
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
Config = dict[str, Any]


def load() -> Config:
    config: Config = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    return config


def mistakes(config: Config) -> list[str]:
    """What is wrong with a configuration of ``ray up``."""
    try:
        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
    except jsonschema.ValidationError as error:
        return [error.message]
    except ValueError as error:
        return [str(error)]
    return list(_mistakes(prepared))


def _mistakes(config: Config) -> Iterator[str]:
    head = config["head_node_type"]
    launch = boto3.client("ec2", region_name=config["provider"]["region"]).meta.service_model
    shape = launch.operation_model("RunInstances").input_shape
    for name, group in config["available_node_types"].items():
        if group["max_workers"] > config["max_workers"]:
            yield f"{name}: max_workers is above the cluster's, which is what counts"
        # Ray adds the counts.
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **group["node_config"]}, shape)
        if report.has_errors():
            yield f"{name}: {report.generate_report()}"
        grouped = all(one.get("Groups") for one in group["node_config"].get("NetworkInterfaces", [{}]))
        if "SecurityGroupIds" not in group["node_config"] and not grouped:
            yield f"{name}: has no security group, so Ray makes one that is open to ssh from everywhere"
        if "IamInstanceProfile" not in group["node_config"]:
            yield f"{name}: has no role, or the one that Ray makes, which may do anything"
        if "spot" in str(group["node_config"].get("InstanceMarketOptions")):
            if name == head:
                yield f"{name}: may be taken away, and the drivers with it"
            if config["provider"].get("cache_stopped_nodes", True):
                yield f"{name}: spot machines cannot be stopped and kept"
    if any(config["available_node_types"][head]["resources"].values()):
        yield f"{head}: takes work"
    for remote, local in config["file_mounts"].items():
        if not local.startswith("~") and not (ROOT / local).exists():
            yield f"file_mounts: there is no {local} for {remote}"
    for field in COMMANDS:
        for command in config[field]:
            checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
            if checked.returncode:
                yield f"{field}: {checked.stderr}"
            for words in re.findall(r"ray start ([^;&|]*)", command):
                yield from (f"{field}: {message}" for message in _start_mistakes(shlex.split(words)))
    if "RAY_AUTH_MODE=token" not in " ".join(config["setup_commands"]):
        yield "Ray asks for no token"
    if "~/.ray/auth_token" not in config["file_mounts"]:
        yield "the machines are given no token"
    if found := re.search(r"aws_credentials|AWS_SECRET|AWS_ACCESS|AKIA\w{16}|://[^/\s]+:[^/\s]+@", json.dumps(config)):
        yield f"holds a credential: {found.group()}"


def _start_mistakes(words: list[str]) -> Iterator[str]:
    try:
        with start.make_context("start", words) as context:
            if context.params["dashboard_host"] not in ("127.0.0.1", "localhost"):
                yield "the dashboard listens to others than the machine itself"
    except click.UsageError as error:
        yield error.message


def test_nothing_is_wrong_with_it() -> None:
    assert mistakes(load()) == []


def _put(*path: str, value: object) -> Callable[[Config], None]:
    def plant(config: Config) -> None:
        _above(config, path)[path[-1]] = value

    return plant


def _drop(*path: str) -> Callable[[Config], None]:
    def plant(config: Config) -> None:
        del _above(config, path)[path[-1]]

    return plant


def _above(config: Config, path: Sequence[str]) -> Config:
    for key in path[:-1]:
        config = config[key]
    return config


GPU = ("available_node_types", "gpu")
HEAD = ("available_node_types", "head")


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        # Ray's schema.
        (_put("max_worker", value=8), "'max_worker' was unexpected"),
        (_put("max_workers", value="8"), "'8' is not of type 'integer'"),
        (_put("auth", "ssh_usr", value="ubuntu"), "'ssh_usr' was unexpected"),
        (_put(*GPU, "minworkers", value=0), "'minworkers' was unexpected"),
        (_put("head_node_type", value="haed"), "`head_node_type` must be one of"),
        (_put(*GPU, "min_workers", value=9), "smaller than the sum of `min_workers`"),
        (_put("idle_timeout_minutes", value="5"), "'5' is not of type 'number'"),
        # AWS' own.
        (_put(*GPU, "node_config", "IamInstanceProfil", value={}), 'Unknown parameter in input: "IamInstanceProfil"'),
        (
            _put(*GPU, "node_config", "InstanceMarketOptions", value="spot"),
            "Invalid type for parameter InstanceMarketOptions",
        ),
        (_put(*GPU, "node_config", "SecurityGroupIds", value="sg-1"), "Invalid type for parameter SecurityGroupIds"),
        # What neither sees.
        (_put(*GPU, "max_workers", value=9), "gpu: max_workers is above the cluster's"),
        (_drop(*GPU, "node_config", "SecurityGroupIds"), "gpu: has no security group"),
        (_drop(*HEAD, "node_config", "IamInstanceProfile"), "head: has no role"),
        (_drop("provider", "cache_stopped_nodes"), "gpu: spot machines cannot be stopped"),
        (_put(*HEAD, "node_config", "InstanceMarketOptions", value={"MarketType": "spot"}), "head: may be taken away"),
        (_put(*HEAD, "resources", value={"CPU": 4}), "head: takes work"),
        (_put("file_mounts", "~/environment", value="requirements.txt"), "there is no requirements.txt"),
        (_put("setup_commands", value=["if true"]), "syntax error"),
        (_put("worker_start_ray_commands", value=["ray start --adress=$RAY_HEAD_IP:6379"]), "No such option"),
        (_put("head_start_ray_commands", value=["ray start --head --dashboard-host=0.0.0.0"]), "listens to others"),
        (_put("setup_commands", value=["true"]), "Ray asks for no token"),
        (_drop("file_mounts", "~/.ray/auth_token"), "given no token"),
        (
            _put("provider", "aws_credentials", value={"aws_secret_access_key": "x"}),
            "holds a credential: aws_credentials",
        ),
        (_put("setup_commands", value=["export RAY_AUTH_MODE=token U=https://me:x@mlflow"]), "holds a credential"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_found(plant: Callable[[Config], None], found: str) -> None:
    config = load()
    plant(config)
    assert any(found in message for message in mistakes(config)), mistakes(config)


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An imitation of an AWS account; Ray writes the key that it makes there into an empty home.

    Ray asks what every type of machine is like. There are the file's here alone, as all of AWS' take many seconds.
    """
    used = {group["node_config"]["InstanceType"] for group in load()["available_node_types"].values()}
    types = [one for one in InstanceTypeBackend.instance_types if one["InstanceType"] in used]
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setattr(InstanceTypeBackend, "instance_types", types)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        yield boto3.Session(region_name=load()["provider"]["region"])


@pytest.fixture(scope="module")
def resolved(account: Any) -> Config:
    """What ``ray up`` makes of the file, with a security group and roles as the stack makes them."""
    ec2 = account.client("ec2")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="ray", Description="ray", VpcId=vpc)["GroupId"]
    return bootstrapped(account, load(), group)


def bootstrapped(account: Any, config: Config, group: str) -> Config:
    """A configuration with that group and with roles, as Ray hands it to the machines."""
    iam = account.client("iam")
    for name, node_type in config["available_node_types"].items():
        if "SecurityGroupIds" in node_type["node_config"]:
            node_type["node_config"]["SecurityGroupIds"] = [group]
        name = f"{name}-{len(iam.list_instance_profiles()['InstanceProfiles'])}"
        profile = iam.create_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Arn"]
        node_type["node_config"]["IamInstanceProfile"] = {"Arn": profile}
    config = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(config))
    found: Config = AWSNodeProvider.bootstrap_config(config)
    return found


def test_with_the_efa_lines_workers_alone_have_such_an_interface(account: Any, resolved: Config) -> None:
    (used,) = resolved["available_node_types"]["head"]["node_config"]["SecurityGroupIds"]
    subnet = account.client("ec2").describe_subnets()["Subnets"][0]["SubnetId"]
    text = PATH.read_text(encoding="utf-8").replace("#NetworkInterfaces:", "NetworkInterfaces:")
    head, _, workers = text.rpartition("      SecurityGroupIds: [sg-0123456789abcdef0]\n")
    config = yaml.safe_load((head + workers).replace("subnet-...", subnet).replace("sg-...", used))
    types = bootstrapped(account, config, used)["available_node_types"]
    assert "NetworkInterfaces" not in types["head"]["node_config"]
    assert types["gpu"]["node_config"]["SecurityGroupIds"] == [used], "as Ray takes it from the interface"
    (interface,) = types["gpu"]["node_config"]["NetworkInterfaces"]
    assert (interface["InterfaceType"], interface["Groups"]) == ("efa", [used])
    assert mistakes(config) == []


def test_ray_up_makes_no_role_and_no_security_group_of_its_own(account: Any, resolved: Config) -> None:
    assert account.client("iam").list_roles()["Roles"] == []
    names = {group["GroupName"] for group in account.client("ec2").describe_security_groups()["SecurityGroups"]}
    assert names == {"default", "ray"}


def test_only_workers_take_work(resolved: Config) -> None:
    resources = {name: group["resources"] for name, group in resolved["available_node_types"].items()}
    assert resources["head"] == {"CPU": 0, "GPU": 0}
    assert resources["gpu"]["GPU"] == 1


def test_prometheus_finds_the_metrics_of_every_node_at_one_port() -> None:
    config = load()
    started = [" ".join(config[f"{kind}_start_ray_commands"]) for kind in ("head", "worker")]
    assert all("--metrics-export-port=8080" in commands for commands in started)


def test_the_job_of_the_readme_fits(resolved: Config) -> None:
    (section,) = re.findall(r"^## AWS$(.*?)^## ", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    asked = {key: int(value) for key, value in re.findall(r"--workers\.(num|cpus|gpus) (\d+)", section)}
    nodes = [
        {name: float(amount) for name, amount in group["resources"].items()}
        for group in resolved["available_node_types"].values()
        for _ in range(group["max_workers"])
    ]
    check_capacity(Workers(**asked), nodes, "the cluster")


def test_the_autoscaler_starts_spot_workers_and_ends_them(account: Any, resolved: Config) -> None:
    provider = AWSNodeProvider(resolved["provider"], resolved["cluster_name"])
    calls: set[str] = set()
    for resource in (provider.ec2, provider.ec2_fail_fast):
        resource.meta.client.meta.events.register("before-call.ec2", lambda model, **_: calls.add(model.name))
    group = resolved["available_node_types"]["gpu"]
    tags = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_LAUNCH_CONFIG: "any", TAG_RAY_NODE_STATUS: "waiting"}
    started = provider.create_node(group["node_config"], tags, 3)
    assert sorted(provider.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_WORKER})) == sorted(started)
    for machine in started:
        provider.set_node_tags(machine, {TAG_RAY_NODE_STATUS: "up-to-date"})
    (reservation,) = account.client("ec2").describe_instances(InstanceIds=list(started))["Reservations"]
    for machine in reservation["Instances"]:
        assert machine["InstanceType"] == "g6.2xlarge"
        assert machine["InstanceLifecycle"] == "spot"
        assert machine["IamInstanceProfile"]["Arn"] == group["node_config"]["IamInstanceProfile"]["Arn"]
        assert [one["GroupId"] for one in machine["SecurityGroups"]] == group["node_config"]["SecurityGroupIds"]
        assert {"Key": "ray-cluster-name", "Value": resolved["cluster_name"]} in machine["Tags"]
    provider.terminate_nodes(list(started))
    assert provider.non_terminated_nodes({}) == []
    # What the role of the head must allow.
    assert calls == {"DescribeInstances", "RunInstances", "CreateTags", "TerminateInstances"}


class _Template(yaml.SafeLoader):
    """CloudFormation's YAML, functions being their arguments."""


_Template.add_multi_constructor("!", lambda loader, _, node: _argument(loader, node))


def _argument(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.MappingNode)
    return loader.construct_mapping(node, deep=True)


def test_the_stack_of_infra_gives_what_the_machines_need() -> None:
    config, stack = load(), yaml.load(STACK.read_text(encoding="utf-8"), _Template)
    assert stack["Parameters"]["RayCluster"]["Default"] == config["cluster_name"]
    assert {"RayHeadProfile", "RayWorkerProfile", "RaySecurityGroup"} <= stack["Outputs"].keys()
    rules = [
        (one["Type"].rpartition("SecurityGroup")[2], one["Properties"])
        for one in stack["Resources"].values()
        if one["Type"].startswith("AWS::EC2::SecurityGroup") and "GroupId" in one["Properties"]
    ]
    for direction, other in (("Ingress", "SourceSecurityGroupId"), ("Egress", "DestinationSecurityGroupId")):
        between = {"GroupId": "RayGroup.GroupId", other: "RayGroup.GroupId", "IpProtocol": "-1"}
        assert any(kind == direction and between.items() <= rule.items() for kind, rule in rules)
    if any("apt-get" in command for command in config["setup_commands"]):
        ways_out = stack["Resources"]["RayGroup"]["Properties"]["SecurityGroupEgress"]
        assert {80, 443} <= {rule["FromPort"] for rule in ways_out}, "Ubuntu's packages come by HTTP"
