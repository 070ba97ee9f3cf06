"""Hosts on one machine: Linux namespaces of their own, joined by a bridge that lives in a namespace of its own.

Each host has its own address, hostname, process ids, /tmp, /dev/shm and /etc/hosts. The network reaches nothing but the
hosts, and nothing else reaches it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_NETWORK = "10.77.0"

# Runs as the host's first process: with it end all others. Its arguments: name, private /tmp, table of hosts, then what
# is to be seen in the private /tmp as it is outside.
_FIRST_PROCESS = """
set -e
hostname "$1"; tmp=$2; hosts=$3; shift 3
mount --make-rprivate /
for kept in "$@"; do mkdir -p "$tmp/${kept#/tmp/}"; mount --bind "$kept" "$tmp/${kept#/tmp/}"; done
mount --rbind "$tmp" /tmp
mount -t tmpfs tmpfs /dev/shm
mount --bind "$hosts" /etc/hosts
echo ready
exec sleep infinity
"""


@dataclass
class Host:
    """A host, and the programs that run on it."""

    name: str
    address: str
    namespace: str
    folder: Path
    first: subprocess.Popen[str]
    process: int
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def _command(self, command: Sequence[str]) -> list[str]:
        inside = ["--net", "--mount", "--uts", "--pid", f"--wd={ROOT}"]
        return ["nsenter", "--target", str(self.process), *inside, "--", *command]

    def run(
        self, *command: str, environment: Mapping[str, str], timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            self._command(command), env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def start(self, *command: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a program that ends with the host; what it says goes to `log`."""
        with self.log.open("ab") as log:
            program = subprocess.Popen(self._command(command), env=environment, stdout=log, stderr=log)
        self.programs.append(program)
        return program

    @property
    def log(self) -> Path:
        """What the programs that were started here have said."""
        return self.folder / "log"

    @property
    def home(self) -> Path:
        """A home of its own."""
        return self.folder / "home"

    def wait_for(self, url: str, seconds: float = 120) -> None:
        """Wait until what was started here last answers there, as asked from here."""
        deadline = time.monotonic() + seconds
        ask = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=5)"
        while self.run(sys.executable, "-S", "-c", ask, environment={"no_proxy": "*"}).returncode != 0:
            assert self.programs[-1].poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{url} does not answer:\n{self.log.read_text()}"
            time.sleep(0.5)


def missing() -> str | None:
    """Why there can be no hosts here, or None."""
    programs = ("ip", "nsenter", "unshare", "mount", "hostname", "sh", "sleep")
    if absent := [program for program in programs if shutil.which(program) is None]:
        return f"not installed: {', '.join(absent)}"
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "only root on Linux makes network namespaces"
    name = f"ds-{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "bridge", "type", "bridge")
        _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "port")
    except subprocess.CalledProcessError as error:
        return f"network namespaces and bridges cannot be made here: {error.stderr.strip()}"
    finally:
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "delete", name)
    return None


@contextmanager
def joined(names: Sequence[str], folder: Path) -> Iterator[dict[str, Host]]:
    """Hosts of these names, and nothing left of them at the end."""
    prefix = f"ds-{secrets.token_hex(3)}"
    switch = f"{prefix}-switch"
    addresses = {name: f"{_NETWORK}.{number}" for number, name in enumerate(names, start=1)}
    table = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items())
    hosts: dict[str, Host] = {}
    namespaces = [switch]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number, (name, address) in enumerate(addresses.items(), start=1):
            namespace, port = f"{prefix}-{number}", f"port{number}"
            _ip("netns", "add", namespace)
            namespaces.append(namespace)
            _ip("-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")
            _ip("-n", namespace, "link", "set", "lo", "up")
            hosts[name] = _boot(name, address, namespace, folder, table)
        yield hosts
    finally:
        for host in hosts.values():
            host.first.kill()  # and with it, as unshare was told, the host's first process and all others
            host.first.wait()
            for program in host.programs:
                program.wait()
        for namespace in namespaces:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", namespace)


def _boot(name: str, address: str, namespace: str, folder: Path, table: str) -> Host:
    files = folder / name
    for part in ("home", "tmp"):
        (files / part).mkdir(parents=True)
    own = files / "hosts"
    own.write_text(f"127.0.1.1 {name}\n{table}")  # a machine's own name, as Debian's installer has it
    kept = {path.resolve() for path in (ROOT, Path(sys.prefix), folder)}
    unshare = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    script = ["sh", "-c", _FIRST_PROCESS, "host", name, str(files / "tmp"), str(own)]
    script += [str(path) for path in sorted(kept) if path.is_relative_to("/tmp")]
    first = subprocess.Popen(
        ["ip", "netns", "exec", namespace, *unshare, *script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert first.stdout is not None
    said = first.stdout.readline()
    assert said == "ready\n", said + first.stdout.read()
    (process,) = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    return Host(name, address, namespace, files, first, int(process))


def _ip(*arguments: Any) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
