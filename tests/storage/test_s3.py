"""What is particular to places in S3."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest

from distsens.errors import InputError
from distsens.storage import open_place
from distsens.storage.s3 import S3Place

UseS3 = Callable[[Mapping[str, str]], str]


@pytest.fixture
def s3(bucket: str) -> Any:
    """A client of the bucket's server."""
    return boto3.session.Session().client("s3")


def names(s3: Any, bucket: str) -> list[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket.removeprefix("s3://"))
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket", S3Place("bucket")),
        ("s3://bucket/", S3Place("bucket")),
        ("s3://my.bucket-1/a/b", S3Place("my.bucket-1", "a/b")),
        ("s3://bucket/a/b/", S3Place("bucket", "a/b")),
        ("s3://bucket/a@b=c", S3Place("bucket", "a@b=c")),
    ],
)
def test_an_address_is_bucket_and_prefix(url: str, place: S3Place) -> None:
    assert open_place(url) == place
    assert place.url == url.rstrip("/")


@pytest.mark.parametrize("url", ["s3://", "s3:///a", "s3://ab", "s3://Bucket", "s3://bucket/../a", "s3://bucket//a"])
def test_an_address_without_a_bucket_or_with_a_strange_prefix_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="must be s3://bucket/prefix") as caught:
        open_place(url)
    assert (caught.value.field, caught.value.value) == ("storage.path", url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:s3cret@bucket/runs",
        "s3://key:s3cret/with/slash@bucket/runs",
        "s3://s3cret@bucket",
        "s3://bucket/runs?secret_key=s3cret",
        "s3://bucket/runs?endpoint_override=localhost:9000",
        "s3://localhost:9000/bucket",
        "s3://bucket/runs#s3cret",
    ],
)
def test_an_address_with_credentials_or_options_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InputError, match="for the AWS variables") as caught:
        open_place(url)
    assert "s3cret" not in str(caught.value)


def test_a_place_says_nothing_of_credentials(moto: dict[str, str], use_s3: UseS3) -> None:
    place = open_place(use_s3({**moto, "AWS_SECRET_ACCESS_KEY": "s3cret"}))
    place.put("a", b"x")
    assert "s3cret" not in repr(place)


def test_the_whole_bucket_can_be_a_place(bucket: str, s3: Any) -> None:
    place = open_place(bucket)
    place.check_writable()
    place.child("run").put("a", b"x")
    place.put("b", b"x")
    assert place.keys() == names(s3, bucket) == ["b", "run/a"]
    place.delete("run")
    assert names(s3, bucket) == ["b"]


def test_a_prefix_hides_what_lies_beside_it(bucket: str, s3: Any) -> None:
    for name in ("runs", "runs2/a", "runs/.hidden", "runs/my notes", "runs/a", "a"):
        s3.put_object(Bucket=bucket.removeprefix("s3://"), Key=name, Body=b"")
    assert open_place(f"{bucket}/runs").keys() == ["a"]


def test_delete_takes_objects_that_are_no_keys(bucket: str, s3: Any) -> None:
    for name in ("run/a", "run/a/", "run/.part", "run2/a", "run"):
        s3.put_object(Bucket=bucket.removeprefix("s3://"), Key=name, Body=b"")
    open_place(bucket).delete("run")
    assert names(s3, bucket) == ["run2/a"]


def test_a_large_file_goes_in_parts(bucket: str, s3: Any) -> None:
    data = bytes(range(256)) * (40 << 12)
    place = open_place(bucket)
    place.put("model", data)
    assert s3.head_object(Bucket=bucket.removeprefix("s3://"), Key="model")["ETag"].endswith('-3"')
    assert place.get("model") == data


def test_delete_ends_uploads_that_a_killed_writer_left(bucket: str, s3: Any) -> None:
    name = bucket.removeprefix("s3://")
    for key in ("run/epoch-1/model", "run/epoch-10/model"):
        upload = s3.create_multipart_upload(Bucket=name, Key=key)["UploadId"]
        s3.upload_part(Bucket=name, Key=key, UploadId=upload, PartNumber=1, Body=b"x")
    place = open_place(f"{bucket}/run")
    assert place.keys() == []
    place.delete("epoch-1")
    assert [left["Key"] for left in s3.list_multipart_uploads(Bucket=name)["Uploads"]] == ["run/epoch-10/model"]


def test_more_files_than_a_request_takes_are_listed_and_deleted(moto: dict[str, str], use_s3: UseS3) -> None:
    bucket = use_s3(moto)
    s3 = boto3.session.Session().client("s3")
    for number in range(1005):
        s3.put_object(Bucket=bucket.removeprefix("s3://"), Key=f"run/{number}", Body=b"")
    place = S3Place.at(bucket)
    assert len(place.keys("run")) == 1005
    deleted: list[int] = []
    place._connection.client.meta.events.register(
        "provide-client-params.s3.DeleteObjects", lambda params, **_: deleted.append(len(params["Delete"]["Objects"]))
    )
    place.delete("run")
    assert deleted == [1000, 5]
    assert place.keys() == []


def test_a_bucket_that_is_not_there_is_no_missing_file(bucket: str) -> None:
    place = open_place("s3://no-such-bucket-here/runs")
    with pytest.raises(InputError, match="there is no such bucket"):
        place.check_writable()
    for use in (place.keys, lambda: place.get("a"), lambda: place.put("a", b""), lambda: place.delete("a")):
        with pytest.raises(OSError, match=r"s3://no-such-bucket-here/runs.*: there is no such bucket") as caught:
            use()
        assert not isinstance(caught.value, FileNotFoundError)


def test_without_credentials_one_line_says_what_to_set(moto: dict[str, str], use_s3: UseS3, monkeypatch: Any) -> None:
    place = open_place(use_s3(moto))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert_refused(place, "no credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert_refused(place, "The config profile (nobody) could not be found")


def test_a_profile_names_endpoint_and_credentials(
    moto: dict[str, str], use_s3: UseS3, monkeypatch: Any, tmp_path: Path
) -> None:
    url = use_s3(moto)
    for name in moto:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile lab]\nendpoint_url = {moto['AWS_ENDPOINT_URL']}\nregion = us-east-1\n")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    open_place(url).check_writable()


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [("http://127.0.0.1:1", "Could not connect to the endpoint URL"), ("nonsense", "Invalid endpoint: nonsense")],
)
def test_an_endpoint_that_cannot_be_reached_is_refused_within_seconds(
    moto: dict[str, str], use_s3: UseS3, monkeypatch: Any, endpoint: str, says: str
) -> None:
    place = open_place(use_s3(moto))
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    began = time.monotonic()
    assert_refused(place, says)
    assert time.monotonic() - began < 5


def assert_refused(place: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        place.check_writable()
    assert says in caught.value.allowed
    assert (caught.value.field, caught.value.value) == ("storage.path", place.url)
    assert "\n" not in str(caught.value)


class BreaksOff(BaseHTTPRequestHandler):
    """Promises ten bytes; the first answers end after five."""

    protocol_version = "HTTP/1.1"
    broken = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"01234")
        if type(self).broken > 0:
            type(self).broken -= 1
        else:
            self.wfile.write(b"56789")
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def server_that_breaks_off(times: int) -> Iterator[str]:
    handler = type("Handler", (BreaksOff,), {"broken": times})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_answer_that_breaks_off_is_read_again(moto: dict[str, str], use_s3: UseS3, monkeypatch: Any) -> None:
    place = open_place(use_s3(moto))
    with server_that_breaks_off(times=3) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert place.get("a") == b"0123456789"
    with server_that_breaks_off(times=100) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(OSError, match=r"/a: broke off 5 times while it was read"):
            open_place(place.url).get("a")
