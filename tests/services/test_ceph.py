"""Storage on a real S3 server: what an imitation lets pass, and what happens when the server dies in the middle."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from threading import Event, Thread

import boto3
import ceph_server
import pytest
from ceph_server import S3Server

from distsens.errors import InputError
from distsens.storage import Checkpoints, open_place
from distsens.storage.s3 import S3Place

UseS3 = Callable[[Mapping[str, str]], str]


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wr0ngsecret", "the secret key is not the one of the access key"),
        ("AWS_ACCESS_KEY_ID", "unknown", "the server does not know the access key"),
    ],
)
def test_wrong_credentials_are_refused_with_one_line(
    ceph: S3Server, use_s3: UseS3, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    place = open_place(use_s3(ceph.environment))
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError) as caught:
        place.check_writable()
    assert caught.value.allowed == f"access denied: {says}"
    for use in (place.keys, lambda: place.get("a"), lambda: place.put("a", b"x"), lambda: place.delete("a")):
        with pytest.raises(OSError, match=says) as error:
            use()
        assert not isinstance(error.value, FileNotFoundError)
        assert value not in str(error.value)
        assert "\n" not in str(error.value)


def test_a_bucket_of_another_user_is_refused(ceph: S3Server, use_s3: UseS3, monkeypatch: pytest.MonkeyPatch) -> None:
    url = use_s3(ceph.environment)
    ceph.add_user("stranger", "stranger", "strangers")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "strangers")
    with pytest.raises(InputError, match="access denied: these credentials may not do that here"):
        open_place(url).check_writable()


def test_a_bucket_that_may_only_be_read_is_refused(
    ceph: S3Server, use_s3: UseS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = use_s3(ceph.environment)
    open_place(url).put("a", b"x")
    ceph.add_user("reader", "reader", "readers")
    policy = {
        "Version": "2012-10-17",
        "Statement": {
            "Effect": "Allow",
            "Principal": {"AWS": "arn:aws:iam:::user/reader"},
            "Action": ["s3:GetObject", "s3:ListBucket", "s3:ListBucketMultipartUploads"],
            "Resource": ["arn:aws:s3:::BUCKET", "arn:aws:s3:::BUCKET/*"],
        },
    }
    bucket = url.removeprefix("s3://")
    boto3.session.Session().client("s3").put_bucket_policy(
        Bucket=bucket, Policy=json.dumps(policy).replace("BUCKET", bucket)
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "readers")
    assert open_place(url).get("a") == b"x"
    with pytest.raises(InputError, match="access denied: these credentials may not do that here"):
        open_place(url).check_writable()
    assert open_place(url).keys() == ["a"]


@pytest.mark.drill
def test_a_file_whose_parts_cannot_be_put_together_is_sent_anew(ceph: S3Server, use_s3: UseS3) -> None:
    place = S3Place.at(use_s3(ceph.environment))
    other = boto3.session.Session().client("s3")
    completions = 0

    def lose_the_parts(**_: object) -> None:
        nonlocal completions
        completions += 1
        if completions == 1:
            (upload,) = other.list_multipart_uploads(Bucket=place.bucket)["Uploads"]
            other.abort_multipart_upload(Bucket=place.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    place._connection.client.meta.events.register("before-call.s3.CompleteMultipartUpload", lose_the_parts)
    place.put("model", bytes(20 << 20))
    assert completions == 2
    assert place.get("model") == bytes(20 << 20)


@pytest.mark.drill
def test_a_server_that_crashes_and_comes_back_loses_nothing_and_stops_nobody(ceph: S3Server, use_s3: UseS3) -> None:
    checkpoints = Checkpoints(open_place(use_s3(ceph.environment)))
    enough, saved = Event(), []

    def save_and_load() -> None:
        while not enough.is_set():
            epoch = len(saved)
            checkpoints.save(epoch, {"model": bytes([epoch]) * 20_000_000}, experiment="", metrics={})
            assert checkpoints.load(epoch).files["model"] == bytes([epoch]) * 20_000_000
            checkpoints.prune(keep=2)
            saved.append(epoch)

    writer = Thread(target=save_and_load)
    writer.start()
    try:
        for seconds in (0.2, 0.2, 5.0):
            time.sleep(0.4)
            ceph.kill_gateway()
            before = len(saved)
            time.sleep(seconds)
            ceph.start_gateway()
            ceph_server.wait_until(lambda count=before: len(saved) > count or not writer.is_alive())
            assert writer.is_alive()
    finally:
        enough.set()
        writer.join()
    assert [manifest.epoch for manifest in checkpoints.manifests()] == saved[-2:]
