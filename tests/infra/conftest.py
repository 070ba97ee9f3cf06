"""An AWS account in which the CloudFormation template is deployed: moto's, reached by boto3 as AWS is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import boto3
import pytest
from botocore.loaders import JSONFileLoader
from moto import mock_aws
from moto.ec2.models import amis
from moto.rds.models import DBInstance, rds_backends

TEMPLATE = Path(__file__).resolve().parents[2] / "infra" / "aws" / "distsens.yaml"
REGION = "eu-central-1"


@dataclass
class Stack:
    """A deployed template: its outputs, and the names of its resources by those that the template has for them."""

    name: str
    outputs: dict[str, str]
    names: dict[str, str]
    subnets: list[str]

    @property
    def bucket(self) -> str:
        return self.outputs["StoragePath"].removeprefix("s3://").partition("/")[0]

    def delete(self) -> None:
        # CloudFormation detaches policies from roles that it deletes; moto does not.
        iam = client("iam")
        for role in iam.list_roles()["Roles"]:
            for policy in iam.list_attached_role_policies(RoleName=role["RoleName"])["AttachedPolicies"]:
                iam.detach_role_policy(RoleName=role["RoleName"], PolicyArn=policy["PolicyArn"])
        client("cloudformation").delete_stack(StackName=self.name)


def client(service: str) -> Any:
    """As the account's administrator."""
    return boto3.session.Session().client(service)


@pytest.fixture(scope="module")
def deploy() -> Iterator[Callable[..., Stack]]:
    """Deploy the template with these parameters, in an account of the module's own."""
    with pytest.MonkeyPatch.context() as patched, mock_aws():
        for name, value in {
            "AWS_ACCESS_KEY_ID": "administrator",
            "AWS_SECRET_ACCESS_KEY": "anything",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
        }.items():
            patched.setenv(name, value)
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patched.delenv(name, raising=False)
        teach_moto_managed_passwords(patched)
        patched.setattr(amis, "AMIS", amis.AMIS[:1])  # it answers with hundreds else, which takes seconds
        # What AWS's services are like is read from files of megabytes: once, and not by each session.
        patched.setattr(JSONFileLoader, "load_file", read_once(JSONFileLoader().load_file))
        yield deployed


def read_once(read: Callable[[str], Any]) -> Callable[[JSONFileLoader, str], Any]:
    kept = cache(read)
    return lambda _, path: kept(path)


@pytest.fixture(scope="module")
def stack(deploy: Callable[..., Stack]) -> Stack:
    """The template with its defaults."""
    return deploy("distsens")


def deployed(name: str, **parameters: str) -> Stack:
    ec2, formation = client("ec2"), client("cloudformation")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=f"{REGION}{zone}")["Subnet"]
        for number, zone in enumerate("ab")
    ]
    ids = [subnet["SubnetId"] for subnet in subnets]
    given = {"Vpc": vpc, "PrivateSubnets": ",".join(ids), **parameters}
    formation.create_stack(
        StackName=name,
        TemplateBody=TEMPLATE.read_text(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    (found,) = formation.describe_stacks(StackName=name)["Stacks"]
    assert found["StackStatus"] == "CREATE_COMPLETE"
    outputs = {output["OutputKey"]: output["OutputValue"] for output in found["Outputs"]}
    resources = formation.list_stack_resources(StackName=name)["StackResourceSummaries"]
    names = {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in resources if "PhysicalResourceId" in one}
    return Stack(name, outputs, names, ids)


def teach_moto_managed_passwords(patched: pytest.MonkeyPatch) -> None:
    """What moto's CloudFormation leaves out and moto's RDS knows: a database's managed password, its groups."""
    create, has, get = (
        DBInstance.create_from_cloudformation_json.__func__,  # type: ignore[attr-defined]
        DBInstance.has_cfn_attr,
        DBInstance.get_cfn_attribute,
    )
    secret = "MasterUserSecret.SecretArn"

    def create_whole(cls: Any, name: str, resource: Any, account: str, region: str, **options: Any) -> Any:
        properties, backend = resource["Properties"], rds_backends[account][region]
        more = {
            "deletion_protection": properties["DeletionProtection"] == "true",
            "manage_master_user_password": properties["ManageMasterUserPassword"],
            "master_user_secret_kms_key_id": properties["MasterUserSecret"]["KmsKeyId"],
            "vpc_security_group_ids": properties["VPCSecurityGroups"],
        }
        make = type(backend).create_db_instance
        with patch.object(backend, "create_db_instance", lambda known: make(backend, {**known, **more})):
            return create(cls, name, resource, account, region, **options)

    patched.setattr(DBInstance, "create_from_cloudformation_json", classmethod(create_whole))
    patched.setattr(DBInstance, "has_cfn_attr", staticmethod(lambda attribute: attribute == secret or has(attribute)))
    patched.setattr(
        DBInstance,
        "get_cfn_attribute",
        lambda self, attribute: self.master_user_secret.secret_arn if attribute == secret else get(self, attribute),
    )
