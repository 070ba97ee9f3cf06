"""A real S3 server: Ceph with one monitor, one object store and one gateway, on loopback ports of its own."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

PROGRAMS = ("ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_PATIENCE_S = 60.0

_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{monitor}
mon initial members = a
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
public addr = 127.0.0.1
ms bind ipv6 = false
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
mon data = {folder}/mon
paxos propose interval = 0.05
paxos min wait = 0.01
mon allow pool size one = true
mon warn on pool no redundancy = false
osd data = {folder}/osd
osd objectstore = bluestore
bluestore block size = 4294967296
bluestore block wal create = false
bluestore block db create = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{gateway}
rgw enable usage log = false
rgw thread pool size = 16
"""


@dataclass
class Ceph:
    """A running server and its first user."""

    folder: Path
    endpoint: str
    access_key: str
    secret_key: str
    gateway: subprocess.Popen[bytes] | None = None
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The AWS variables of a process that may use the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def run(self, program: str, *arguments: str) -> None:
        """Run one of Ceph's tools to its end."""
        command = [program, "--conf", str(self.folder / "ceph.conf"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"

    def add_user(self, name: str, access_key: str, secret_key: str) -> None:
        """Let the gateway know a user."""
        user = ["user", "create", "--uid", name, "--display-name", name]
        self.run("radosgw-admin", *user, "--access-key", access_key, "--secret-key", secret_key)

    def start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one of Ceph's daemons, in the foreground of a process that `stop` ends."""
        command = [program, "--foreground", "--conf", str(self.folder / "ceph.conf"), *arguments]
        with (self.folder / f"{program}.out").open("ab") as output:
            daemon = subprocess.Popen(command, stdout=output, stderr=output)
        self.daemons.append(daemon)
        return daemon

    def start_gateway(self) -> None:
        """Start the S3 gateway and wait until it answers."""
        self.gateway = gateway = self.start("radosgw", "--name", "client.rgw")

        def answers() -> bool:
            assert gateway.poll() is None, (self.folder / "radosgw.out").read_text()
            try:
                urlopen(self.endpoint, timeout=5).close()
            except HTTPError:
                return True
            except (URLError, TimeoutError, ConnectionError):
                return False
            return True

        wait_until(answers)

    def kill_gateway(self) -> None:
        """End the S3 gateway as a crash would."""
        assert self.gateway is not None
        self.gateway.kill()
        self.gateway.wait()

    def stop(self) -> None:
        """End every daemon; their data goes with the folder."""
        for daemon in reversed(self.daemons):
            daemon.kill()
            daemon.wait()


def missing() -> list[str]:
    """The programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextmanager
def running() -> Iterator[Ceph]:
    """Start a server with an empty store, and leave nothing of it behind."""
    monitor, gateway = free_ports(2)
    # Short, because Ceph puts sockets there.
    folder = Path(tempfile.mkdtemp(prefix="ceph-", dir="/tmp"))
    ceph = Ceph(folder, f"http://127.0.0.1:{gateway}", secrets.token_hex(10), secrets.token_hex(20))
    try:
        _make_store(ceph, monitor, gateway)
        ceph.start_gateway()
        ceph.add_user("tests", ceph.access_key, ceph.secret_key)
        yield ceph
    finally:
        ceph.stop()
        shutil.rmtree(folder)


def _make_store(ceph: Ceph, monitor: int, gateway: int) -> None:
    """Monitor and object store, with a key for each of their users."""
    folder, fsid = ceph.folder, str(uuid.uuid4())
    configuration = _CONFIGURATION.format(fsid=fsid, folder=folder, monitor=monitor, gateway=gateway)
    (folder / "ceph.conf").write_text(configuration)
    keyring, monmap = str(folder / "keyring"), str(folder / "monmap")
    users = {
        "mon.": ("mon", "allow *"),
        "client.admin": ("mon", "allow *", "osd", "allow *"),
        "osd.0": ("mon", "allow profile osd", "osd", "allow *"),
        "client.rgw": ("mon", "allow rw", "osd", "allow rwx"),
    }
    for number, (name, rights) in enumerate(users.items()):
        caps = [word for kind, right in zip(rights[::2], rights[1::2], strict=True) for word in ("--cap", kind, right)]
        new = ["--create-keyring"] if number == 0 else []
        ceph.run("ceph-authtool", *new, keyring, "--gen-key", "--name", name, *caps)
    ceph.run("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{monitor}]", "--fsid", fsid, monmap)
    (folder / "osd").mkdir()
    (folder / "rgw").mkdir()
    ceph.run("ceph-mon", "--mkfs", "--id", "a", "--monmap", monmap, "--keyring", keyring)
    ceph.start("ceph-mon", "--id", "a")
    osd = str(uuid.uuid4())
    ceph.run("ceph", "osd", "new", osd)
    ceph.run("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", osd, "--keyring", keyring)
    ceph.start("ceph-osd", "--id", "0")


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until it holds, a minute at most."""
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it has not happened within a minute"
        time.sleep(0.1)
