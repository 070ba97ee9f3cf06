"""The CloudFormation template: the linter finds nothing, and what it deploys is closed to everybody else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from cfnlint.api import lint
from cfnlint.decode import decode_str

TEMPLATE = (Path(__file__).resolve().parents[2] / "infra" / "aws" / "distsens.yaml").read_text()

pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse .* but it's not supported by moto")


def findings(template: str) -> list[str]:
    """What the linter says, down to mere information."""
    config: Any = {"include_checks": ["E", "W", "I"], "regions": ["eu-central-1", "us-east-1"]}
    return [f"{match.rule.id} {match.message}" for match in lint(template, config=config)]


def test_the_linter_finds_nothing() -> None:
    assert findings(TEMPLATE) == []


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("StorageEncrypted: true", "StorageEncryption: true", "E3002"),
        ("KmsKeyId: !GetAtt Key.Arn\n      # Made", "KmsKeyId: !GetAtt Key.Name\n      # Made", "E1010"),
        ('EngineVersion: "17.11"', 'EngineVersion: "9.0"', "E3691"),
        ("Action: ec2:DescribeInstances", "Action: ec2:DescribeEverything", "W3037"),
        ("    UpdateReplacePolicy: Snapshot\n", "", "W3011"),
        ("MasterUsername: mlflow", "MasterUsername: mlflow\n      MasterUserPassword: s3cret-password", "W2501"),
    ],
)
def test_the_linter_finds_a_planted_mistake(right: str, wrong: str, rule: str) -> None:
    assert TEMPLATE.count(right) == 1
    found = findings(TEMPLATE.replace(right, wrong))
    assert any(line.startswith(tuple(rule.split("|"))) for line in found), found


def resources() -> dict[str, Any]:
    """Of the template, for what moto's CloudFormation does not deploy."""
    template, problems = decode_str(TEMPLATE)
    assert not problems
    found: dict[str, Any] = template["Resources"]
    return found


def test_the_bucket_is_versioned_closed_and_kept_tidy() -> None:
    bucket = resources()["Bucket"]["Properties"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    closed = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
    assert bucket["PublicAccessBlockConfiguration"] == dict.fromkeys(closed, True)
    assert bucket["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    uploads, versions = bucket["LifecycleConfiguration"]["Rules"]
    assert uploads["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert versions["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    assert not {"ExpirationInDays", "ExpirationDate"} & {*uploads, *versions}, "no current file expires"
    (statement,) = resources()["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_the_bucket_is_encrypted_with_a_key_that_is_rotated(stack: Any) -> None:
    found = boto3.client("s3").get_bucket_encryption(Bucket=stack.bucket)["ServerSideEncryptionConfiguration"]
    (rule,) = found["Rules"]
    default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key_arn(stack)}
    assert rule["ApplyServerSideEncryptionByDefault"] == default
    assert boto3.client("kms").get_key_rotation_status(KeyId=stack.names["Key"])["KeyRotationEnabled"]


def key_arn(stack: Any) -> str:
    return next(key["KeyArn"] for key in boto3.client("kms").list_keys()["Keys"] if key["KeyId"] == stack.names["Key"])


def test_the_database_is_private_encrypted_and_nobody_wrote_its_password(stack: Any) -> None:
    found = boto3.client("rds").describe_db_instances(DBInstanceIdentifier=stack.names["Database"])
    (database,) = found["DBInstances"]
    assert (database["Engine"], database["Endpoint"]["Port"]) == ("postgres", 5432)
    assert database["StorageEncrypted"]
    assert database["KmsKeyId"] == database["MasterUserSecret"]["KmsKeyId"] == key_arn(stack)
    assert not database["PubliclyAccessible"]
    assert database["DeletionProtection"]
    assert database["BackupRetentionPeriod"] >= 7
    assert [group["VpcSecurityGroupId"] for group in database["VpcSecurityGroups"]] == [group(stack, "DatabaseGroup")]
    assert stack.outputs["DatabaseSecret"] == database["MasterUserSecret"]["SecretArn"]
    assert stack.outputs["DatabaseHost"] == database["Endpoint"]["Address"]


def group(stack: Any, name: str) -> str:
    return str(stack.names[name])


def test_only_jobs_reach_mlflow_and_only_mlflow_its_database(stack: Any) -> None:
    ray, tracking, database = (group(stack, name) for name in ("RayGroup", "TrackingGroup", "DatabaseGroup"))
    assert ingress(ray) == {("-1", None, ray)}
    assert ingress(tracking) == {("tcp", 5000, ray)}
    assert ingress(database) == {("tcp", 5432, tracking)}


def ingress(group: str) -> set[tuple[str, int | None, str]]:
    """Protocol, port and source of everything that may come in."""
    (found,) = boto3.client("ec2").describe_security_groups(GroupIds=[group])["SecurityGroups"]
    return {
        (rule["IpProtocol"], rule.get("FromPort"), source)
        for rule in found["IpPermissions"]
        for source in [
            *(pair["GroupId"] for pair in rule["UserIdGroupPairs"]),
            *(block["CidrIp"] for block in rule["IpRanges"]),
        ]
    }


def test_ssh_comes_from_where_it_was_allowed_to(deploy: Callable[..., Any]) -> None:
    outputs = deploy("with-ssh", SshFrom="192.0.2.0/24").outputs
    ray, tracking = outputs["RaySecurityGroup"], outputs["TrackingSecurityGroup"]
    assert ingress(ray) == {("-1", None, ray), ("tcp", 22, "192.0.2.0/24")}
    assert ingress(tracking) == {("tcp", 5000, ray), ("tcp", 22, "192.0.2.0/24")}


def test_nothing_goes_out_but_to_where_it_must() -> None:
    out = {
        (name, rule["IpProtocol"], rule.get("ToPort"), rule.get("CidrIp"))
        for name, resource in resources().items()
        if resource["Type"] == "AWS::EC2::SecurityGroup"
        for rule in resource["Properties"]["SecurityGroupEgress"]
    } | {
        (rule["GroupId"]["Fn::GetAtt"][0], rule["IpProtocol"], rule.get("ToPort"), to["Fn::GetAtt"][0])
        for resource in resources().values()
        if resource["Type"] == "AWS::EC2::SecurityGroupEgress"
        for rule in [resource["Properties"]]
        for to in [rule["DestinationSecurityGroupId"]]
    }
    assert out == {
        ("RayGroup", "tcp", 443, "0.0.0.0/0"),
        ("RayGroup", "tcp", 80, "0.0.0.0/0"),
        ("RayGroup", "-1", None, "RayGroup"),
        ("RayGroup", "tcp", 5000, "TrackingGroup"),
        ("TrackingGroup", "tcp", 443, "0.0.0.0/0"),
        ("TrackingGroup", "tcp", 5432, "DatabaseGroup"),
        ("DatabaseGroup", "icmp", 86, "255.255.255.255/32"),
    }


def test_a_protected_database_is_not_deleted_by_mistake(stack: Any) -> None:
    with pytest.raises(ClientError, match="protect"):
        boto3.client("rds").delete_db_instance(DBInstanceIdentifier=stack.names["Database"], SkipFinalSnapshot=True)


def test_a_deleted_stack_leaves_the_runs_and_their_key_and_nothing_else(deploy: Callable[..., Any]) -> None:
    def there() -> dict[str, set[str]]:
        ec2, iam = boto3.client("ec2"), boto3.client("iam")
        return {
            "buckets": {one["Name"] for one in boto3.client("s3").list_buckets()["Buckets"]},
            "keys": {one["KeyId"] for one in boto3.client("kms").list_keys()["Keys"]},
            "databases": {
                one["DBInstanceIdentifier"] for one in boto3.client("rds").describe_db_instances()["DBInstances"]
            },
            "secrets": {one["ARN"] for one in boto3.client("secretsmanager").list_secrets()["SecretList"]},
            "roles": {one["RoleName"] for one in iam.list_roles()["Roles"]},
            "profiles": {one["InstanceProfileName"] for one in iam.list_instance_profiles()["InstanceProfiles"]},
            "groups": {
                one["GroupId"]
                for one in ec2.describe_security_groups()["SecurityGroups"]
                if one["GroupName"] != "default"
            },
        }

    before = there()
    stack = deploy("short-lived", DatabaseDeletionProtection="false")
    made = {kind: names - before[kind] for kind, names in there().items()}
    assert {kind: len(names) for kind, names in made.items()} == {
        "buckets": 1,
        "keys": 1,
        "databases": 1,
        "secrets": 1,
        "roles": 3,
        "profiles": 3,
        "groups": 3,
    }
    stack.delete()
    left = {kind: names - before[kind] for kind, names in there().items()}
    assert left == {kind: names if kind in ("buckets", "keys") else set() for kind, names in made.items()}
