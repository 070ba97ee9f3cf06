"""What each role of the template may do: everything that our code does under it, and nothing else.

Real code runs against moto under a guard that asks, before each call, the policies that are deployed for the role.
Which permissions a call needs is said in AWS's Service Authorization Reference.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import parse_qs
from xml.etree import ElementTree

import boto3
import botocore.handlers
import pytest
from botocore.exceptions import ClientError
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from distsens.errors import InputError
from distsens.storage import Checkpoints, open_place, published
from distsens.storage.bucket_tree import BucketTree
from distsens.storage.s3 import S3Place

REGION = "eu-central-1"
ACCOUNT = f"arn:aws:ec2:{REGION}:123456789012"
EXPERIMENT: dict[str, Any] = {"experiment": "", "metrics": {}}

pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse .* but it's not supported by moto")


class Need(NamedTuple):
    """A permission that a call needs: the action, on what, and what is known of the request."""

    action: str
    resource: str
    context: Mapping[str, str] = {}


Policy = Mapping[str, Any]


def permits(policies: Sequence[Policy], need: Need) -> bool:
    """Whether some statement allows it and none denies it; a statement that we cannot read is an error."""
    effects = set()
    for statement in (statement for policy in policies for statement in policy["Statement"]):
        assert set(statement) <= {"Sid", "Effect", "Action", "Resource", "Condition"}, statement
        if (
            any(is_like(need.action.lower(), one.lower()) for one in as_list(statement["Action"]))
            and any(is_like(need.resource, one) for one in as_list(statement["Resource"]))
            and all(
                need.context.get(key) in as_list(values)
                for operator, conditions in statement.get("Condition", {}).items()
                for key, values in exact(operator, conditions).items()
            )
        ):
            effects.add(statement["Effect"])
    return effects == {"Allow"}


def exact(operator: str, conditions: dict[str, Any]) -> dict[str, Any]:
    assert operator in ("ArnEquals", "StringEquals"), operator
    assert "*" not in str(conditions), conditions
    return conditions


def is_like(name: str, pattern: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), name) is not None


def as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def granted(policies: Sequence[Policy]) -> set[str]:
    """Every action that is allowed anywhere."""
    return {action for policy in policies for one in policy["Statement"] for action in as_list(one["Action"])}


@dataclass
class Account:
    """The account in which a stack is deployed: what calls need there, in an administrator's eyes."""

    stack: Any
    administrator: boto3.session.Session
    _clients: dict[str, Any] = field(default_factory=dict)

    def client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = self.administrator.client(service)
        return self._clients[service]

    @cached_property
    def key(self) -> str:
        keys = self.client("kms").list_keys()["Keys"]
        return next(key["KeyArn"] for key in keys if key["KeyId"] == self.stack.names["Key"])

    def policies_of(self, role: str) -> list[Policy]:
        """As they are deployed; a role has none beside those that are attached to it."""
        iam, name = self.client("iam"), self.stack.names[role]
        assert iam.list_role_policies(RoleName=name)["PolicyNames"] == []
        attached = [one["PolicyArn"] for one in iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]]
        versions = [(arn, iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]) for arn in attached]
        return [
            iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
            for arn, version in versions
        ]

    def needs(self, service: str, operation: str, params: Mapping[str, Any]) -> list[Need]:
        if service == "s3" and "Bucket" in params:
            return self._of_s3(operation, params)
        if service == "ec2":
            return self._of_ec2(operation, params)
        if (service, operation) == ("secretsmanager", "GetSecretValue"):
            return [Need("secretsmanager:GetSecretValue", params["SecretId"]), self._encryption("Decrypt", service)]
        return [Need(f"{service}:{operation}", "*")]

    def _of_s3(self, operation: str, params: Mapping[str, Any]) -> list[Need]:
        bucket = f"arn:aws:s3:::{params['Bucket']}"
        name = f"{bucket}/{params.get('Key')}"
        if operation in ("GetObject", "HeadObject"):
            if "VersionId" in params:
                return [Need("s3:GetObjectVersion", name)]
            found = self.client("s3").list_objects_v2(Bucket=params["Bucket"], Prefix=params["Key"])
            there = any(one["Key"] == params["Key"] for one in found.get("Contents", ()))
            # That there is none is told to those who may list, and to others that it is forbidden.
            rest = self._encryption("Decrypt") if there else Need("s3:ListBucket", bucket)
            return [Need("s3:GetObject", name), rest]
        if operation in ("PutObject", "CreateMultipartUpload"):
            return [Need("s3:PutObject", name), self._encryption("GenerateDataKey")]
        if operation in ("UploadPart", "CompleteMultipartUpload"):
            return [Need("s3:PutObject", name), self._encryption("GenerateDataKey"), self._encryption("Decrypt")]
        if operation == "DeleteObjects":
            return [Need("s3:DeleteObject", f"{bucket}/{one['Key']}") for one in params["Delete"]["Objects"]]
        if operation == "DeleteObject":
            return [Need("s3:DeleteObjectVersion" if "VersionId" in params else "s3:DeleteObject", name)]
        of_bucket = {
            "HeadBucket": "ListBucket",
            "ListMultipartUploads": "ListBucketMultipartUploads",
            "ListObjectsV2": "ListBucket",
        }
        return [Need(f"s3:{of_bucket.get(operation, operation)}", name if "Key" in params else bucket)]

    def _encryption(self, action: str, service: str = "s3") -> Need:
        return Need(f"kms:{action}", self.key, {"kms:ViaService": f"{service}.{REGION}.amazonaws.com"})

    def _of_ec2(self, operation: str, params: Mapping[str, Any]) -> list[Need]:
        instances = params.get("InstanceIds") or params.get("Resources") or []
        if operation == "RunInstances":
            return self._of_new_instances(params)
        if operation.startswith("Describe") or not instances:
            return [Need(f"ec2:{operation}", "*")]
        return [Need(f"ec2:{operation}", f"{ACCOUNT}:instance/{one}", self._tags(one)) for one in instances]

    def _tags(self, instance: str) -> dict[str, str]:
        (found,) = self.client("ec2").describe_instances(InstanceIds=[instance])["Reservations"]
        return {f"aws:ResourceTag/{tag['Key']}": tag["Value"] for tag in found["Instances"][0].get("Tags", ())}

    def _of_new_instances(self, params: Mapping[str, Any]) -> list[Need]:
        tags = {tag["Key"]: tag["Value"] for one in params.get("TagSpecifications", ()) for tag in one["Tags"]}
        context = {f"aws:RequestTag/{key}": value for key, value in tags.items()}
        new, others = f"{ACCOUNT}:instance/*", [f"{ACCOUNT}:network-interface/*", f"{ACCOUNT}:volume/*"]
        needs = []
        if profile := params.get("IamInstanceProfile", {}).get("Arn"):
            context["ec2:InstanceProfile"] = profile
            found = self.client("iam").get_instance_profile(InstanceProfileName=profile.split("/")[-1])
            (role,) = found["InstanceProfile"]["Roles"]
            needs.append(Need("iam:PassRole", role["Arn"], {"iam:PassedToService": "ec2.amazonaws.com"}))
        others += [f"arn:aws:ec2:{REGION}::image/{params['ImageId']}", f"{ACCOUNT}:subnet/{params['SubnetId']}"]
        others += [f"{ACCOUNT}:security-group/{group}" for group in params["SecurityGroupIds"]]
        others += [f"{ACCOUNT}:key-pair/{params['KeyName']}"] if "KeyName" in params else []
        if tags:
            needs.append(Need("ec2:CreateTags", new, {**context, "ec2:CreateAction": "RunInstances"}))
        return [*needs, Need("ec2:RunInstances", new, context), *(Need("ec2:RunInstances", one) for one in others)]


@dataclass
class Guard:
    """Refuses what the policies do not permit, and remembers what they were asked for."""

    account: Account
    policies: list[Policy]
    used: set[str] = field(default_factory=set)

    def __call__(self, params: Mapping[str, Any], model: Any, **_: object) -> None:
        if refused := self.refused(model.service_model.service_name, model.name, params):
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": refused}}, model.name)

    def refused(self, service: str, operation: str, params: Mapping[str, Any]) -> str | None:
        """The first permission that the call lacks."""
        for need in self.account.needs(service, operation, params):
            if not permits(self.policies, need):
                return need.action
            self.used.add(need.action)
        return None


@pytest.fixture(scope="module")
def account(stack: Any) -> Account:
    return Account(stack, boto3.session.Session())


Under = Callable[..., Any]


@pytest.fixture
def under(account: Account) -> Under:
    """Be in a role of the template, with its policies or others instead: every session made meanwhile is guarded."""

    @contextmanager
    def use(role: str, policies: list[Policy] | None = None) -> Iterator[Guard]:
        guard = Guard(account, policies or account.policies_of(role))
        with pytest.MonkeyPatch.context() as patched:
            handlers = [*botocore.handlers.BUILTIN_HANDLERS, ("provide-client-params", guard)]
            patched.setattr(botocore.handlers, "BUILTIN_HANDLERS", handlers)
            patched.setattr(boto3, "DEFAULT_SESSION", None)
            yield guard

    return use


def use_storage(url: str) -> None:
    """Everything that train, evaluate and analyze do with their storage."""
    storage = open_place(url)
    storage.check_writable()
    checkpoints = Checkpoints(storage.child("run"))
    for epoch in range(3):
        checkpoints.save(epoch, {"model": bytes(20 << 20) if epoch == 0 else b"x"}, **EXPERIMENT)
    storage.child("run").put("checkpoints/epoch-0003/model", b"cut off by a crash, before its manifest")
    assert checkpoints.newest().checkpoint is not None
    checkpoints.prune(keep=1)
    assert [manifest.epoch for manifest in checkpoints.manifests()] == [2]
    address = published.publish(storage, "run", {"model": b"x"}, epoch=2, **EXPERIMENT)
    assert list(published.models(storage)) == ["run"]
    assert published.fetch(address).files == {"model": b"x"}
    published.prune(storage, keep=1)
    with pytest.raises(FileNotFoundError):
        storage.get("missing")
    place = S3Place.at(url)
    place._connection.client.create_multipart_upload(Bucket=place.bucket, Key=f"{place.prefix}/run/left-by-a-crash")
    storage.delete("run")
    assert storage.keys("run") == []


# What S3 clients that are not boto3 ask for: method, whether of an object, and the parameter that tells it from others.
OPERATIONS = {
    ("HEAD", False, None): "HeadBucket",
    ("GET", False, "list-type"): "ListObjectsV2",
    ("POST", False, "delete"): "DeleteObjects",
    ("HEAD", True, None): "HeadObject",
    ("GET", True, None): "GetObject",
    ("PUT", True, None): "PutObject",
    ("DELETE", True, None): "DeleteObject",
    ("POST", True, "uploads"): "CreateMultipartUpload",
    ("PUT", True, "uploadId"): "UploadPart",
    ("POST", True, "uploadId"): "CompleteMultipartUpload",
    ("DELETE", True, "uploadId"): "AbortMultipartUpload",
}


def call_of(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Operation and parameters of a request to S3; one that we do not know is an error."""
    bucket, _, key = request["PATH_INFO"].lstrip("/").partition("/")
    query = parse_qs(request["QUERY_STRING"], keep_blank_values=True)
    mark = next((one for one in ("list-type", "delete", "uploads", "uploadId") if one in query), None)
    operation = OPERATIONS[request["REQUEST_METHOD"], bool(key), mark]
    params: dict[str, Any] = {"Bucket": bucket} | ({"Key": key} if key else {})
    if operation == "DeleteObjects":
        body = request["wsgi.input"].read(int(request["CONTENT_LENGTH"]))
        request["wsgi.input"] = io.BytesIO(body)
        named = ElementTree.fromstring(body).iter("{*}Key")
        params["Delete"] = {"Objects": [{"Key": one.text} for one in named]}
    return operation, params


@contextmanager
def server(guard: Guard) -> Iterator[str]:
    """The account's S3 under the guard, for clients that are not boto3; what a URL in it has behind its ``?``."""
    moto = DomainDispatcherApplication(create_backend_app)

    def answer(request: dict[str, Any], start: Callable[..., Any]) -> Any:
        operation, params = call_of(request)
        # Of a bucket that is nobody's PyArrow wants to know by whom it is told so.
        if not params["Bucket"].startswith("$") and guard.refused("s3", operation, params):
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        return moto(request, start)

    listening = make_server("127.0.0.1", 0, answer, threaded=True)
    thread = Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"endpoint_override=127.0.0.1:{listening.server_port}&scheme=http&region={REGION}"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def use_ray_tune(url: str, query: str, folder: Path) -> None:
    """What Ray Tune does with a sweep's folder, by the functions that it does it with."""
    from ray.train._internal import storage

    (folder / "trial").mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    (folder / "trial" / "result").write_bytes(bytes(11 << 20))
    context = storage.StorageContext(f"{url}/sweep?{query}", "ray")  # which tries it by a file of its own
    files, at = context.storage_filesystem, context.experiment_fs_path
    with files.open_output_stream(f"{at}/tuner.pkl") as stream:
        stream.write(b"x")
    storage._upload_to_fs_path(str(folder), files, at)
    assert set(storage._list_at_fs_path(files, at)) >= {"state.json", "trial", "tuner.pkl"}
    storage._download_from_fs_path(files, at, f"{folder}-back")
    assert Path(f"{folder}-back", "state.json").read_text() == "{}"
    assert not storage._exists_at_fs_path(files, f"{at}/missing")
    files.delete_file(f"{at}/state.json")
    files.delete_dir(at)
    assert storage._list_at_fs_path(files, at) == []


@pytest.mark.parametrize("role", ["RayHeadRole", "RayWorkerRole"])
def test_ray_tune_may_keep_its_state_in_the_storage(account: Account, under: Under, role: str, tmp_path: Path) -> None:
    with under(role) as guard, server(guard) as query:
        use_ray_tune(account.stack.outputs["StoragePath"], query, tmp_path / "state")
    assert guard.used >= {"s3:DeleteObject", "s3:GetObject", "s3:ListBucket", "s3:PutObject"}


@pytest.mark.parametrize("action", ["s3:DeleteObject", "s3:GetObject", "s3:ListBucket", "s3:PutObject"])
def test_a_permission_that_ray_tune_lacks_is_seen(account: Account, under: Under, action: str, tmp_path: Path) -> None:
    (deployed,) = account.policies_of("RayWorkerRole")
    fewer = json.loads(json.dumps(deployed).replace(f'"{action}"', '"s3:Nothing"'))
    denied = pytest.raises(OSError, match="ACCESS_DENIED")
    with under("RayWorkerRole", [fewer]) as guard, server(guard) as query, denied:
        use_ray_tune(account.stack.outputs["StoragePath"], query, tmp_path / "state")


@pytest.mark.parametrize("role", ["RayHeadRole", "RayWorkerRole"])
def test_jobs_may_read_data_sets_in_the_bucket_and_not_change_them(account: Account, under: Under, role: str) -> None:
    bucket, url = account.stack.bucket, account.stack.outputs["DataPath"]
    name = "data/images/train/cat/1.png"
    account.client("s3").put_object(Bucket=bucket, Key=name, Body=b"a picture")
    with under(role):
        tree = BucketTree.at(f"{url}/images")
        assert tree.folders("train") == ("cat",)
        assert tree.files("train") == ["train/cat/1.png"]
        assert tree.read("train/cat/1.png") == b"a picture"
        s3 = boto3.session.Session().client("s3")
        assert_denied(lambda: s3.put_object(Bucket=bucket, Key=name, Body=b"another"))
        assert_denied(lambda: s3.delete_object(Bucket=bucket, Key=name))
        with pytest.raises(InputError, match="access denied"):
            open_place(url).check_writable()


def test_a_worker_may_do_what_jobs_do_with_their_storage_and_nothing_else(account: Account, under: Under) -> None:
    with under("RayWorkerRole") as guard:
        use_storage(account.stack.outputs["StoragePath"])
    assert granted(guard.policies) == guard.used


@pytest.mark.parametrize("role", ["RayHeadRole", "RayWorkerRole"])
def test_whoever_has_a_ray_role_may_do_nothing_beside_the_runs(account: Account, under: Under, role: str) -> None:
    bucket, group = account.stack.bucket, account.stack.outputs["RaySecurityGroup"]
    secret = account.stack.outputs["DatabaseSecret"]
    another = f"another-for-{role.lower()}"
    account.client("s3").create_bucket(Bucket=another, CreateBucketConfiguration={"LocationConstraint": REGION})
    with under(role):
        session = boto3.session.Session()
        s3, ec2, iam = session.client("s3"), session.client("ec2"), session.client("iam")
        for name in ("mlflow/1/model", "runs", "runs2/model", "data", "data2/image", "other"):
            assert_denied(lambda name=name: s3.get_object(Bucket=bucket, Key=name))
            assert_denied(lambda name=name: s3.put_object(Bucket=bucket, Key=name, Body=b""))
            assert_denied(lambda name=name: s3.delete_object(Bucket=bucket, Key=name))
        # What is deleted stays for a month as an older version, even if the machine is taken over.
        assert_denied(lambda: s3.delete_object(Bucket=bucket, Key="runs/model", VersionId="1"))
        assert_denied(lambda: s3.get_object(Bucket=another, Key="runs/model"))
        assert_denied(lambda: s3.put_bucket_policy(Bucket=bucket, Policy="{}"))
        assert_denied(lambda: s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"}))
        assert_denied(lambda: s3.delete_bucket(Bucket=bucket))
        assert_denied(s3.list_buckets)
        assert_denied(lambda: iam.create_access_key(UserName="administrator"))
        assert_denied(lambda: session.client("secretsmanager").get_secret_value(SecretId=secret))
        assert_denied(lambda: session.client("rds").describe_db_instances())
        # The key is for what S3 encrypts, not for anything else.
        assert_denied(lambda: session.client("kms").decrypt(CiphertextBlob=b"x", KeyId=account.key))
        machine = {"ImageId": "ami-1", "SubnetId": account.stack.subnets[0], "MinCount": 1, "MaxCount": 1}
        assert_denied(lambda: ec2.run_instances(**machine, SecurityGroupIds=[group]))
        assert_denied(lambda: ec2.authorize_security_group_ingress(GroupId=group, CidrIp="0.0.0.0/0"))
        with pytest.raises(InputError, match="access denied"):
            open_place(f"s3://{bucket}/mlflow").check_writable()


def assert_denied(call: Callable[[], Any]) -> None:
    with pytest.raises(ClientError) as caught:
        call()
    assert caught.value.response["Error"]["Code"] == "AccessDenied"


def test_rays_autoscaler_may_start_and_end_machines_of_its_cluster_and_nothing_else(
    account: Account, under: Under
) -> None:
    from ray.autoscaler._private.aws import utils
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    ours, others = machines(account, "distsens"), machines(account, "another")
    utils.resource_cache.cache_clear()
    with under("RayHeadRole") as guard:
        provider = AWSNodeProvider({"region": REGION, "cache_stopped_nodes": False}, "distsens")
        use_storage(account.stack.outputs["StoragePath"])
    utils.resource_cache.cache_clear()
    tags = {"ray-node-kind": "worker", "ray-node-name": "ray-distsens-worker"}
    node = {
        "ImageId": image(account),
        "InstanceType": "g6.xlarge",
        "KeyName": "ray",
        "SubnetIds": [account.stack.subnets[0]],
        "SecurityGroupIds": [account.stack.outputs["RaySecurityGroup"]],
        "IamInstanceProfile": {"Arn": account.stack.outputs["RayWorkerProfile"]},
        "InstanceMarketOptions": {"MarketType": "spot"},
    }
    account.client("ec2").create_key_pair(KeyName="ray")
    (started,) = provider.create_node(node, tags, 1)
    assert {*ours, started} <= set(provider.non_terminated_nodes({}))
    provider.set_node_tags(started, {"ray-node-status": "up-to-date"})
    provider.terminate_nodes([started, *ours])
    assert provider.non_terminated_nodes({}) == []
    assert granted(guard.policies) == guard.used

    # Machines that are not its own, and its own with rights that it is not to give away.
    client = provider.ec2.meta.client
    assert_denied(lambda: client.terminate_instances(InstanceIds=others))
    assert_denied(lambda: client.create_tags(Resources=others, Tags=[{"Key": "ray-cluster-name", "Value": "distsens"}]))
    whole = {**node, "SubnetId": node["SubnetIds"][0], "MinCount": 1, "MaxCount": 1}  # type: ignore[index]
    del whole["SubnetIds"]
    named = {"ResourceType": "instance", "Tags": [{"Key": "ray-cluster-name", "Value": "distsens"}]}
    head, open_to_all = account.stack.outputs["RayHeadProfile"], account.stack.outputs["TrackingSecurityGroup"]
    client.run_instances(**whole, TagSpecifications=[named])
    assert_denied(lambda: client.run_instances(**whole))
    assert_denied(
        lambda: client.run_instances(**{**whole, "IamInstanceProfile": {"Arn": head}}, TagSpecifications=[named])
    )
    assert_denied(
        lambda: client.run_instances(**{**whole, "SecurityGroupIds": [open_to_all]}, TagSpecifications=[named])
    )


def image(account: Account) -> str:
    return str(account.client("ec2").describe_images()["Images"][0]["ImageId"])


def machines(account: Account, cluster: str) -> list[str]:
    """Running machines of a cluster, started by somebody else."""
    tags = [{"Key": "ray-cluster-name", "Value": cluster}]
    started = account.client("ec2").run_instances(
        ImageId=image(account),
        MinCount=1,
        MaxCount=1,
        SubnetId=account.stack.subnets[0],
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    return [one["InstanceId"] for one in started["Instances"]]


def test_mlflows_server_may_keep_artifacts_and_open_its_database_and_nothing_else(
    account: Account, under: Under, tmp_path: Path
) -> None:
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    url, secret = account.stack.outputs["ArtifactsDestination"], account.stack.outputs["DatabaseSecret"]
    (tmp_path / "small").write_bytes(b"x")
    with under("TrackingRole") as guard:
        artifacts = S3ArtifactRepository(f"{url}/1/run/artifacts")
        artifacts.log_artifact(str(tmp_path / "small"), "model")
        assert [one.path for one in artifacts.list_artifacts("model")] == ["model/small"]
        assert Path(artifacts.download_artifacts("model/small", str(tmp_path))).read_bytes() == b"x"
        artifacts.delete_artifacts("model")
        session = boto3.session.Session()
        assert "password" in session.client("secretsmanager").get_secret_value(SecretId=secret)["SecretString"]
        assert_denied(lambda: session.client("s3").get_object(Bucket=account.stack.bucket, Key="runs/run/run.json"))
    assert granted(guard.policies) == guard.used


def statement(actions: str | list[str], resource: str, **more: Any) -> Policy:
    return {"Statement": [{"Effect": "Allow", "Action": actions, "Resource": resource, **more}]}


def test_permissions_that_nothing_needs_are_seen(account: Account, under: Under) -> None:
    surplus = ["s3:*", "s3:DeleteBucket", "iam:PassRole"]
    deployed = account.policies_of("RayWorkerRole")
    with under("RayWorkerRole", [*deployed, statement(surplus, "*")]) as guard:
        use_storage(account.stack.outputs["StoragePath"])
    assert granted(guard.policies) - guard.used == {*surplus}


def test_a_permission_that_is_missing_is_seen(account: Account, under: Under) -> None:
    (deployed,) = account.policies_of("RayWorkerRole")
    for action in granted([deployed]):
        fewer = json.loads(json.dumps(deployed).replace(f'"{action}"', '"s3:Nothing"'))
        with under("RayWorkerRole", [fewer]), pytest.raises((ClientError, InputError, OSError)):
            use_storage(account.stack.outputs["StoragePath"])


def test_listing_under_a_condition_would_make_missing_files_forbidden_ones(account: Account, under: Under) -> None:
    bucket = f"arn:aws:s3:::{account.stack.bucket}"
    condition = {"Condition": {"StringEquals": {"s3:prefix": "runs/"}}}
    narrowed = [statement("s3:ListBucket", bucket, **condition), statement("s3:GetObject", f"{bucket}/runs/*")]
    with under("RayWorkerRole", narrowed), pytest.raises(OSError, match="access denied"):
        open_place(account.stack.outputs["StoragePath"]).get("missing")


def test_what_is_denied_is_not_permitted_and_what_cannot_be_judged_is_an_error() -> None:
    need = Need("s3:GetObject", "arn:aws:s3:::bucket/runs/a", {"kms:ViaService": "s3"})
    assert permits([statement("s3:Get*", "arn:aws:s3:::bucket/runs/?")], need)
    assert not permits([statement("s3:Get*", "arn:aws:s3:::bucket/run")], need)
    denied = {"Statement": [{"Effect": "Deny", "Action": "*", "Resource": "*"}]}
    assert not permits([statement("s3:Get*", "*"), denied], need)
    assert not permits([statement("*", "*", Condition={"StringEquals": {"kms:ViaService": "ec2"}})], need)
    for unreadable in ({"NotAction": "s3:*"}, {"Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}}):
        with pytest.raises(AssertionError):
            permits([statement("*", "*", **unreadable)], need)
