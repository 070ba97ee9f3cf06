"""The whole stack on this machine without containers: PostgreSQL, Ceph as the S3 server, MLflow, Ray head and workers.

``up`` starts what does not run yet and says where everything is; ``down`` ends it and leaves the data. All of it lies
in one folder, is on loopback alone and asks for a password, a key or a token.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from configparser import ConfigParser
from pathlib import Path
from typing import NoReturn, Protocol

import boto3
import ceph
import postgres
import tracking_server
from ceph import Ceph
from daemons import Daemons, StackError
from postgres import Postgres
from ray_nodes import WORKERS, RayNodes
from tracking_server import TrackingServer

from distsens.errors import short, shown
from distsens.words import fault_of_path

BUCKET = "distsens"
PORTS = {"postgres": 5433, "s3": 7480, "mlflow": 5000, "ray": 6379, "dashboard": 8265}
_REGION = "us-east-1"
_S3_USER = "distsens"
_CAPACITY = 256 << 30  # Of the S3 server's file, which is as large as what is in it.
_LONGEST_FOLDER = 34  # Ray's sockets are 72 characters below it, and no socket's path has more than 107.


class InputError(StackError):
    """Something that whoever starts the stack can set right."""


class Part(Protocol):
    """What runs and can be stopped."""

    def runs(self) -> bool:
        """Whether it runs."""

    def stop(self) -> bool:
        """End it; whether it ran."""


class Stack:
    """The stack of a folder, at these ports, with so many CPUs for each Ray worker."""

    def __init__(self, folder: Path, ports: dict[str, int], cpus: int) -> None:
        daemons = Daemons(folder / "daemons")
        self._folder, self._ports, self._cpus = folder, ports, cpus
        self._postgres = Postgres(folder / "postgres", daemons, ports["postgres"])
        self._s3 = Ceph(folder / "ceph", ports["s3"])
        self._tracking = TrackingServer(daemons, ports["mlflow"])
        token = self._secret_file("ray-token")
        self._ray = RayNodes(folder / "ray", daemons, ports["ray"], ports["dashboard"], token)
        self._parts: dict[str, Part] = {
            "PostgreSQL": self._postgres,
            "S3": self._s3,
            "MLflow": self._tracking,
            "Ray": self._ray,
        }

    def up(self) -> None:
        """Start what does not run; if that fails, end what was started."""
        self._check()
        for name in ("", "daemons", "secrets"):
            (self._folder / name).mkdir(mode=0o700, exist_ok=True)
        self._folder.chmod(0o711)  # PostgreSQL, which is another user, passes through to its own folder.
        start = {
            "PostgreSQL": self._start_postgres,
            "S3": self._start_s3,
            "MLflow": self._start_tracking,
            "Ray": self._start_ray,
        }
        began: list[Part] = []
        try:
            for name, part in self._parts.items():
                if not part.runs():
                    part.stop()  # what a crash may have left of it
                    began.append(part)
                    start[name]()
                self._tell_where(name)
        except BaseException:
            for part in reversed(began):
                part.stop()
            raise
        script = self._write_client_script()
        job = f"python jobs/train.py --recipe quickstart --storage.path s3://{BUCKET}/runs"
        print(f"next: . {script} && .venv/bin/python cluster/submit.py -- {job}")

    def down(self) -> None:
        """End what runs, and leave the data."""
        stopped = [name for name, part in reversed(self._parts.items()) if part.stop()]
        print(f"stopped {', '.join(stopped)}; the data stay in {self._folder}" if stopped else "nothing runs")

    def _tell_where(self, name: str) -> None:
        workers = f"{WORKERS} workers of {self._cpus} CPU" + ("s" if self._cpus > 1 else "")
        where, secret = {
            "PostgreSQL": (self._database, "pgpass"),
            "S3": (f"{self._s3.endpoint}, bucket {BUCKET}", "aws-credentials"),
            "MLflow": (f"{self._tracking.url}, user {tracking_server.ADMINISTRATOR}", "mlflow-password"),
            "Ray": (f"{self._ray.dashboard}, head at {self._ray.address}, {workers}", "ray-token"),
        }[name]
        print(f"{name:<10} {where}; secret in {self._secret_file(secret)}", flush=True)

    def _start_postgres(self) -> None:
        password = self._secret("postgres-password")
        self._write_secret("pgpass", f"127.0.0.1:*:*:{postgres.USER}:{password}\n")
        self._postgres.start(password)

    def _start_s3(self) -> None:
        self._s3.start(_CAPACITY)
        if not self._secret_file("aws-credentials").exists():
            keys = f"aws_access_key_id = {secrets.token_hex(10)}\naws_secret_access_key = {secrets.token_hex(20)}\n"
            self._write_secret("aws-credentials", f"[default]\n{keys}")
        keys_file = ConfigParser()
        keys_file.read(self._secret_file("aws-credentials"))
        if _S3_USER not in self._s3.users():
            known = keys_file["default"]
            self._s3.add_user(_S3_USER, known["aws_access_key_id"], known["aws_secret_access_key"])
        s3 = boto3.session.Session().client(
            "s3", endpoint_url=self._s3.endpoint, region_name=_REGION, **keys_file["default"]
        )
        if BUCKET not in [one["Name"] for one in s3.list_buckets()["Buckets"]]:
            s3.create_bucket(Bucket=BUCKET)

    def _start_tracking(self) -> None:
        self._tracking.start(self._of_tracking_server(), self._secret("mlflow-password"))

    def _start_ray(self) -> None:
        self._secret("ray-token")
        self._ray.start(self._of_ray_nodes(), self._cpus)

    def _check(self) -> None:
        if absent := [*postgres.missing(), *ceph.missing()]:
            packages = "postgresql ceph-common ceph-mgr ceph-mon ceph-osd radosgw"
            raise InputError(f"no {', '.join(absent)}: apt-get install --no-install-recommends {packages}")
        if absent := tracking_server.missing():
            raise InputError(f"no {', '.join(absent)}: install distsens with its extra `server`, as make setup does")
        if len(str(self._folder)) > _LONGEST_FOLDER:
            raise InputError(f"{self._folder}: longer than {_LONGEST_FOLDER} characters, too long for paths of sockets")
        if self._folder.exists():
            # In a folder for all, such as /var/tmp, another may have made it first.
            known = self._folder.lstat()
            if not stat.S_ISDIR(known.st_mode) or known.st_uid != os.getuid():
                raise InputError(f"{self._folder}: not a folder of yours")
        listens = dict(zip(PORTS, [*self._parts.values(), self._ray], strict=True))
        for name, part in listens.items():
            if not part.runs() and _is_taken(self._ports[name]):
                raise InputError(f"port {self._ports[name]} is taken: choose another by --{name}-port")

    @property
    def _database(self) -> str:
        return f"postgresql://{postgres.USER}@127.0.0.1:{self._ports['postgres']}/{postgres.DATABASE}"

    def _secret_file(self, name: str) -> Path:
        return self._folder / "secrets" / name

    def _secret(self, name: str) -> str:
        """The secret of that name, made when it is first asked for."""
        if not self._secret_file(name).exists():
            self._write_secret(name, secrets.token_hex(24))
        return self._secret_file(name).read_text()

    def _write_secret(self, name: str, content: str) -> None:
        file = self._secret_file(name)
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(content)

    def _of_s3_client(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self._s3.endpoint,
            "AWS_REGION": _REGION,
            "AWS_SHARED_CREDENTIALS_FILE": str(self._secret_file("aws-credentials")),
            "AWS_EC2_METADATA_DISABLED": "true",
            # Ceph does not know the checksums that newer clients add.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }

    def _of_tracking_server(self) -> dict[str, str]:
        self._write_secret(
            "mlflow-auth.ini",
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {self._database}\n"
            f"admin_username = {tracking_server.ADMINISTRATOR}\nadmin_password = {self._secret('mlflow-password')}\n"
            # To check a password takes a second of a processor, and a training sends several requests a second.
            "auth_cache_ttl_seconds = 60\n",
        )
        return {
            **_without_settings(),
            **self._of_s3_client(),
            "PGPASSFILE": str(self._secret_file("pgpass")),
            "MLFLOW_BACKEND_STORE_URI": self._database,
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
            "MLFLOW_AUTH_CONFIG_PATH": str(self._secret_file("mlflow-auth.ini")),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self._secret("mlflow-cookie-key"),
            # Without it ten more processes and a gigabyte, for what we do not use.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ALLOWED_HOSTS": _allowed_hosts(),
        }

    def _of_ray_nodes(self) -> dict[str, str]:
        """What nodes have, their jobs have too; a submitted job's `python` is the head's."""
        return {
            **_without_settings(),
            **self._of_s3_client(),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._secret_file("ray-token")),
            "MLFLOW_TRACKING_URI": self._tracking.url,
            "MLFLOW_TRACKING_USERNAME": tracking_server.ADMINISTRATOR,
            "MLFLOW_TRACKING_PASSWORD": self._secret("mlflow-password"),
        }

    def _write_client_script(self) -> Path:
        """A script for a shell that uses the stack; it says where secrets are, and holds none."""
        variables = {
            **self._of_s3_client(),
            "RAY_API_SERVER_ADDRESS": self._ray.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._secret_file("ray-token")),
            "MLFLOW_TRACKING_URI": self._tracking.url,
            "MLFLOW_TRACKING_USERNAME": tracking_server.ADMINISTRATOR,
            "MLFLOW_TRACKING_PASSWORD": f'"$(cat {self._secret_file("mlflow-password")})"',
        }
        script = self._folder / "client.sh"
        script.write_text("".join(f"export {name}={value}\n" for name, value in variables.items()))
        return script


def _without_settings() -> dict[str, str]:
    """The environment of the parts, without what would lead them elsewhere."""
    others = ("AWS_", "MLFLOW_", "PG", "RAY_")
    return {name: value for name, value in os.environ.items() if not name.startswith(others)}


def _allowed_hosts() -> str:
    """The names that the tracking server answers to: this machine's, and that of a proxy which the caller names."""
    more = os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS")
    return ",".join(["127.0.0.1:*", "localhost:*", *([more] if more else [])])


def _is_taken(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one short line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(short(message))


def _whole(most: int) -> Callable[[str], int]:
    """Read a number from 1 to the most."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"got {shown(text)}; it takes a whole number from 1 to {most}")
        return int(text)

    return read


def _folder(text: str) -> Path:
    if fault := fault_of_path(text):
        raise argparse.ArgumentTypeError(f"got {shown(text)}; {fault}")
    return Path(text).absolute()


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit code is 1 when a part fails, 2 for what can be set right beforehand."""
    parser = _Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("--folder", type=_folder, default=Path("/var/tmp/distsens"), help="of all data, secrets, logs")
    cpus = max(1, (os.cpu_count() or 1) // WORKERS)
    parser.add_argument("--cpus", type=_whole(10**4), default=cpus, help="of each Ray worker")
    for name, port in PORTS.items():
        parser.add_argument(f"--{name}-port", type=_whole(2**16 - 1), default=port)
    try:
        options = parser.parse_args(arguments)
        ports = {name: getattr(options, f"{name}_port") for name in PORTS}
        stack = Stack(options.folder, ports, options.cpus)
        if options.command == "down":
            stack.down()
        else:
            stack.up()
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
