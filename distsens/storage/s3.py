"""A place in an S3 bucket: each file is one object, which S3 itself replaces whole or not at all.

Endpoint, region and credentials come from boto3's own chain and nowhere else: the AWS variables (``AWS_ENDPOINT_URL``,
``AWS_REGION``, ``AWS_PROFILE``, ``AWS_ACCESS_KEY_ID``, ...), the shared configuration files, or the machine's role.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from io import BytesIO
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from distsens.errors import InputError
from distsens.storage.keys import check_key, is_key

SCHEME = "s3://"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ATTEMPTS = 12  # With growing pauses between them, half a minute or so in all: a server that restarts is waited for.
_ATTEMPTS_TO_CHECK = 2
_SECONDS_TO_CONNECT = 3
_SECONDS_TO_ANSWER = 60
_SECONDS_TO_ANSWER_CHECK = 10
_READS = 5
_CONNECTIONS = 32
_DELETED_AT_ONCE = 1000  # the most that S3 takes
_CUT_OFF = ("InternalError", "NoSuchUpload")
_PARTS = TransferConfig(multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4)

_NO_CREDENTIALS = "no credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give a role"
_OTHER_REGION = "the bucket is in another region: set AWS_REGION"
_FAULTS = {
    "NoSuchBucket": "there is no such bucket",
    "AccessDenied": "access denied: these credentials may not do that here",
    "InvalidAccessKeyId": "access denied: the server does not know the access key",
    "SignatureDoesNotMatch": "access denied: the secret key is not the one of the access key",
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "IllegalLocationConstraintException": _OTHER_REGION,
    "PermanentRedirect": _OTHER_REGION,
}


class _Connection:
    """A client that a place and its children share, made when it is first needed; it does not travel by pickle.

    All places that a process is sent share one: to make it takes a twentieth of a second, and to connect as long again.
    """

    @cached_property
    def client(self) -> Any:
        return _new_client(_ATTEMPTS, _SECONDS_TO_ANSWER)

    def __reduce__(self) -> tuple[Callable[[], _Connection], tuple[()]]:
        return _connection_here, ()


def _connection_here() -> _Connection:
    return _connection_with(tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@cache
def _connection_with(_variables: tuple[tuple[str, str], ...]) -> _Connection:
    return _Connection()


@dataclass(frozen=True)
class S3Place:
    """The objects of a bucket under a prefix, as a `Place`; an empty prefix is the whole bucket.

    The credentials need s3:ListBucket and s3:ListBucketMultipartUploads on the bucket, and s3:GetObject, s3:PutObject,
    s3:DeleteObject and s3:AbortMultipartUpload under the prefix.
    """

    bucket: str
    prefix: str = ""
    _connection: _Connection = field(default_factory=_Connection, repr=False, compare=False)

    @staticmethod
    def at(url: str) -> S3Place:
        """Return the place at ``s3://bucket/prefix``; `InputError` for anything else. Touches nothing there."""
        bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        if set("@:") & set(bucket) or set("?#") & set(url):
            allowed = "must be s3://bucket/prefix alone; endpoint, region and credentials are for the AWS variables"
            # A secret may be anywhere in there, and so it is not repeated.
            raise InputError("storage.path", f"{SCHEME}***", allowed)
        prefix = prefix.rstrip("/")
        if not _BUCKET.fullmatch(bucket) or (prefix and not is_key(prefix)):
            raise InputError("storage.path", url, "must be s3://bucket/prefix")
        return S3Place(bucket, prefix)

    @property
    def url(self) -> str:
        """The prefix as a ``s3://`` URL."""
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def put(self, key: str, data: bytes) -> None:
        """Store the file, a large one in parts; see `Place.put`."""
        name = self._name(check_key(key))
        with self._os_errors(name):
            for last in (False, False, True):
                try:
                    self._client.upload_fileobj(BytesIO(data), self.bucket, name, Config=_PARTS)
                    return
                except ClientError as error:
                    # Putting parts together, where a crash cut it off, cannot be asked for a second time.
                    if last or _code(error) not in _CUT_OFF:
                        raise

    def get(self, key: str) -> bytes:
        """Return the file; see `Place.get`."""
        return self.read(check_key(key))

    def read(self, name: str) -> bytes:
        """Return an object whose name under the prefix may be any, otherwise as :meth:`get`."""
        name = self._name(name)
        with self._os_errors(name):
            # The client repeats a request that fails, and not the reading of an answer that breaks off. In one
            # request, because of two the second may be answered with a newer file.
            for _ in range(_READS):
                answer = self._client.get_object(Bucket=self.bucket, Key=name)
                try:
                    return bytes(answer["Body"].read())
                except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                    continue
        raise OSError(f"{SCHEME}{self.bucket}/{name}: broke off {_READS} times while it was read")

    def keys(self, prefix: str = "") -> list[str]:
        """Return the sorted keys; see `Place.keys`. Objects whose names are no keys are not listed."""
        start = len(self._name(""))
        return sorted(key for name in self._names(prefix) if is_key(key := name[start:]))

    def objects(self) -> dict[str, str]:
        """By name under the prefix, keys or not, what changes with an object's content: its size and entity tag."""
        start = len(self._name(""))
        return {entry["Key"][start:]: f"{entry['Size']} {entry['ETag']}" for entry in self._entries("")}

    def delete(self, prefix: str) -> None:
        """Delete the objects, and uploads that were never completed; see `Place.delete`."""
        names = list(self._names(check_key(prefix)))
        with self._os_errors(self._name(prefix)):
            for start in range(0, len(names), _DELETED_AT_ONCE):
                batch = [{"Key": name} for name in names[start : start + _DELETED_AT_ONCE]]
                answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})
                for error in answer.get("Errors", ()):
                    raise ClientError({"Error": error}, "DeleteObjects")
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self._name(prefix)
            )
            for upload in (upload for page in pages for upload in page.get("Uploads", ())):
                if _is_under(upload["Key"], self._name(prefix)):
                    self._client.abort_multipart_upload(
                        Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )

    def check_writable(self) -> None:
        """List, write, read and delete a probe, within seconds; see `Place.check_writable`."""
        # Of its own name, as others may look at the same time.
        probe = {"Bucket": self.bucket, "Key": self._name(f".probe-{secrets.token_hex(8)}")}
        try:
            client = _new_client(_ATTEMPTS_TO_CHECK, _SECONDS_TO_ANSWER_CHECK)
            client.list_objects_v2(Bucket=self.bucket, Prefix=self._name(""), MaxKeys=1)
            client.list_multipart_uploads(Bucket=self.bucket, Prefix=self._name(""), MaxUploads=1)
            client.put_object(**probe, Body=b"probe")
            client.get_object(**probe)["Body"].read()
            client.delete_object(**probe)
        except (BotoCoreError, ClientError, ValueError) as error:
            raise InputError("storage.path", self.url, _fault(error)) from error

    def child(self, name: str) -> S3Place:
        """Return the place of the objects under a further prefix; see `Place.child`."""
        return S3Place(self.bucket, self._name(check_key(name)), self._connection)

    @property
    def _client(self) -> Any:
        return self._connection.client

    def _name(self, key: str) -> str:
        """Name of the object."""
        return f"{self.prefix}/{key}" if self.prefix else key

    def _names(self, prefix: str) -> Iterable[str]:
        """Names of all objects that equal the prefix or lie under it, keys or not."""
        return (entry["Key"] for entry in self._entries(prefix))

    def _entries(self, prefix: str) -> list[dict[str, Any]]:
        """What S3 lists of these objects."""
        top = self._name(check_key(prefix)) if prefix else self.prefix
        with self._os_errors(top):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=top)
            return [entry for page in pages for entry in page.get("Contents", ()) if _is_under(entry["Key"], top)]

    @contextmanager
    def _os_errors(self, name: str) -> Iterator[None]:
        """boto3's errors as those of `Place`; its ValueError is for an endpoint that is no URL."""
        url = f"{SCHEME}{self.bucket}/{name}"
        try:
            yield
        except (BotoCoreError, ClientError, ValueError) as error:
            if isinstance(error, ClientError) and _code(error) == "NoSuchKey":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error
            raise OSError(f"{url}: {_fault(error)}") from error


def _new_client(attempts: int, seconds_to_answer: int) -> Any:
    # A session of its own, because boto3's common one is not thread-safe.
    return boto3.session.Session().client(
        "s3",
        config=Config(
            connect_timeout=_SECONDS_TO_CONNECT,
            read_timeout=seconds_to_answer,
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=_CONNECTIONS,
            # Not every S3 server knows the checksums that boto3 would add; the manifests hold SHA-256 anyway.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _is_under(name: str, top: str) -> bool:
    return not top or name == top or name.startswith(f"{top}/")


def _code(error: ClientError) -> str:
    return str(error.response["Error"].get("Code"))


def _fault(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, ClientError):
        code, message = _code(error), error.response["Error"].get("Message") or ""
        return _FAULTS.get(code, f"{code}: {message}".strip(": "))
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return _NO_CREDENTIALS
    return " ".join(str(error).split())
