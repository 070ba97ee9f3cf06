"""A real S3 server: Ceph with one monitor, one object store and one gateway, on loopback."""

from __future__ import annotations

import json
import shutil
import signal
import uuid
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from daemons import Daemons, run

from distsens.distributed.ports import free_ports

PROGRAMS = ("ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_DAEMONS = ("ceph-mon", "ceph-osd", "radosgw")

_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{monitor}
mon initial members = a
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
public addr = 127.0.0.1
cluster addr = 127.0.0.1
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
bluestore block size = {size}
bluestore block wal create = false
bluestore block db create = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
rgw data = {folder}/rgw
rgw enable usage log = false
rgw thread pool size = 16
"""


class Ceph:
    """A server whose data, keys and sockets lie in a folder; its path must be short, as those of sockets are."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.endpoint = f"http://127.0.0.1:{port}"
        self._daemons = Daemons(folder)
        self._port = port

    def start(self, size: int) -> None:
        """Start the server, with an empty store of so many bytes if there is none yet, and wait until it answers."""
        new = not (self.folder / "osd" / "ready").exists()  # the last that is made
        if new:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(mode=0o700)
            self._make(size)
        self._start("ceph-mon", "--id", "a")
        if new:
            self._make_osd()
        self._start("ceph-osd", "--id", "0")
        self.start_gateway()

    def start_gateway(self) -> None:
        """Start the S3 gateway and wait until it answers."""
        self._start("radosgw", "--name", "client.rgw", f"--rgw-frontends=beast endpoint=127.0.0.1:{self._port}")
        self._daemons.wait("radosgw", self._answers)

    def kill_gateway(self) -> None:
        """End the S3 gateway as a crash would."""
        self._daemons.stop("radosgw", how=signal.SIGKILL)

    def runs(self) -> bool:
        """Whether all of its daemons run."""
        return all(self._daemons.process(name) is not None for name in _DAEMONS)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> bool:
        """End every daemon; whether any ran."""
        ran = [self._daemons.stop(name, how=how) for name in reversed(_DAEMONS)]
        return any(ran)

    def add_user(self, name: str, access_key: str | None = None, secret_key: str | None = None) -> tuple[str, str]:
        """Let the gateway know a user; access key and secret key, made by it unless they are given."""
        command = ["user", "create", "--uid", name, "--display-name", name]
        if access_key is not None and secret_key is not None:
            command += ["--access-key", access_key, "--secret-key", secret_key]
        (keys,) = json.loads(self._run("radosgw-admin", *command))["keys"]
        return keys["access_key"], keys["secret_key"]

    def users(self) -> list[str]:
        """Names of the users that the gateway knows."""
        found: list[str] = json.loads(self._run("radosgw-admin", "user", "list"))
        return found

    def _answers(self) -> bool:
        try:
            urlopen(self.endpoint, timeout=5).close()
        except HTTPError:
            return True
        except (URLError, TimeoutError, ConnectionError):
            return False
        return True

    def _start(self, program: str, *arguments: str) -> None:
        self._daemons.start(program, [program, "--foreground", "--conf", self.folder / "ceph.conf", *arguments])

    def _run(self, program: str, *arguments: str) -> str:
        return run([program, "--conf", self.folder / "ceph.conf", *arguments])

    def _make(self, size: int) -> None:
        """The monitor's store, and a key for each of Ceph's own users."""
        folder, fsid, (monitor,) = self.folder, str(uuid.uuid4()), free_ports(1)
        keyring, monmap = str(folder / "keyring"), str(folder / "monmap")
        (folder / "ceph.conf").write_text(_CONFIGURATION.format(fsid=fsid, folder=folder, monitor=monitor, size=size))
        users = {
            "mon.": ("mon", "allow *"),
            "client.admin": ("mon", "allow *", "osd", "allow *"),
            "osd.0": ("mon", "allow profile osd", "osd", "allow *"),
            "client.rgw": ("mon", "allow rw", "osd", "allow rwx"),
        }
        for number, (name, rights) in enumerate(users.items()):
            pairs = zip(rights[::2], rights[1::2], strict=True)
            caps = [word for kind, right in pairs for word in ("--cap", kind, right)]
            new = ["--create-keyring"] if number == 0 else []
            self._run("ceph-authtool", *new, keyring, "--gen-key", "--name", name, *caps)
        self._run("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{monitor}]", "--fsid", fsid, monmap)
        (folder / "osd").mkdir()
        (folder / "rgw").mkdir()
        self._run("ceph-mon", "--mkfs", "--id", "a", "--monmap", monmap, "--keyring", keyring)

    def _make_osd(self) -> None:
        osd = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", osd, "--keyring", str(self.folder / "keyring"))


def missing() -> list[str]:
    """The programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]
