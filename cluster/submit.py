"""Submit a job to a Ray cluster with the code of this clone, and follow it to its end; the exit code is the job's.

python cluster/submit.py --address http://127.0.0.1:8265 -- python jobs/train.py --recipe mnist-sns --workers.num 8

What runtime_env.yaml leaves out stays here. Ctrl-C ends only the following: the job goes on.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import shlex
import socket
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import yaml

from distsens.command_line import parse_flags, print_error, run_job, show_help, take_options
from distsens.errors import InputError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).resolve().parents[1]

_ADDRESS = "RAY_API_SERVER_ADDRESS"
_INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    """Where the job goes."""

    address: str | None = None
    """The dashboard of the cluster, http:// or https://; RAY_API_SERVER_ADDRESS unless given."""
    allow_open: bool = False
    """Submit to a dashboard on another machine even if it asks nobody for a token."""


def main(arguments: Sequence[str]) -> int:
    """Submit what stands behind ``--``, follow it, and return its exit code."""
    ours, command = _split(arguments)
    if "--help" in ours or "-h" in ours:
        show_help(__doc__ or "", Options())
    flags = parse_flags(ours)
    options = take_options(Options, flags)
    if flags:
        raise InputError(next(iter(flags)), "a flag", "the job and its flags stand behind --")
    if not command:
        raise InputError("command line", None, "name the job, as in -- python jobs/train.py --recipe quickstart")
    script = next((word for word in command if word.endswith(".py")), None)
    if script is not None and not os.path.isfile(ROOT / script):
        raise InputError("job", script, f"there is no such file in {ROOT}")
    address = (options.address or os.environ.get(_ADDRESS) or "").rstrip("/")
    check_cluster(address, allow_open=options.allow_open)
    return _run(address, shlex.join(command))


def check_cluster(address: str, *, allow_open: bool) -> None:
    """Refuse a dashboard that is not there, that lets in anybody who can reach it, or whose Ray is not ours."""
    host = _host(address)
    # Without credentials first: what anybody would be told.
    status, answer = _ask(address, {})
    if status == HTTPStatus.OK:
        if not allow_open and not _is_loopback(host):
            allowed = "it asks nobody for a token, and so runs anything for whoever reaches it: turn tokens on, or say "
            raise InputError("address", address, allowed + "--allow-open")
    elif status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        status, answer = _ask(address, _credentials(address))
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise InputError(
                "address", address, "the cluster has another token than RAY_AUTH_TOKEN_PATH or Ray's own file"
            )
    try:
        ray_of_cluster = str(json.loads(answer)["ray_version"])
    except (ValueError, KeyError, TypeError):
        raise InputError("address", address, f"what answers there (HTTP {status}) is no Ray dashboard") from None
    _check_ray(address, ray_of_cluster)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(arguments)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _host(address: str) -> str:
    allowed = "name the cluster's dashboard, as in --address http://127.0.0.1:8265"
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InputError("address", address, allowed) from None
    if parts.username or parts.password:
        raise InputError("address", f"{parts.scheme}://...@{host}", "credentials do not belong into an address")
    if parts.scheme not in ("http", "https") or not host:
        raise InputError("address", address or None, allowed)
    return host


def _is_loopback(host: str) -> bool:
    """Whether the name means this machine alone, whatever it resolves to."""
    try:
        return all(ipaddress.ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None))
    except OSError:  # only a proxy knows the name
        return False


def _ask(address: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """Status and body of the answer to the question for Ray's version."""
    try:
        with urlopen(Request(f"{address}/api/version", headers=dict(headers)), timeout=30) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, b""
    except (HTTPException, OSError, ValueError) as error:  # ValueError: what no name of a machine can be
        reason = getattr(error, "reason", error)
        raise InputError("address", address, f"no Ray dashboard answers there: {reason}") from None


def _credentials(address: str) -> dict[str, str]:
    """The token as Ray's own clients find it."""
    token = os.environ.get("RAY_AUTH_TOKEN") if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" else ""
    if token is None:
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()
        try:
            token = file.read_text(encoding="utf-8")
        except (OSError, ValueError):
            token = ""
    if not token.strip():
        allowed = (
            "the cluster asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file that holds it"
        )
        raise InputError("address", address, allowed)
    return {"Authorization": f"Bearer {token.strip()}"}


def _check_ray(address: str, found: str) -> None:
    """By what pyproject.toml asks for: the job runs with the cluster's packages, not with those of this machine."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (needed,) = (one for one in map(Requirement, project["dependencies"]) if one.name == "ray")
    if not needed.specifier.contains(found, prereleases=True):
        raise InputError("address", address, f"the cluster runs Ray {found}, and the jobs need ray{needed.specifier}")


def _run(address: str, command: str) -> int:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.WARNING)  # Ray tells of every file that it leaves out
    os.environ[_ADDRESS] = address  # else Ray would take that of another cluster from RAY_ADDRESS
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=command, runtime_env=_runtime_env())
    except (AuthenticationError, OSError, RuntimeError, ValueError) as error:
        print_error(f"failed: the cluster did not take the job: {_first_line(error)}")
        return 1
    print(f"job {job}\nstop it with: ray job stop --address {address} {job}", flush=True)
    try:
        return _follow(client, job)
    except KeyboardInterrupt:
        again = f"ray job logs --follow --address {address} {job}"
        print_error(f"the job goes on; follow it with: {again}")
        return _INTERRUPTED


def _runtime_env() -> dict[str, Any]:
    from distsens.distributed.provenance import COMMIT_VARIABLE, code_commit

    environment = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text(encoding="utf-8"))
    return {**environment, "working_dir": str(ROOT), "env_vars": {COMMIT_VARIABLE: code_commit()}}


def _follow(client: JobSubmissionClient, job: str) -> int:
    """Show the job's output until it ends; its exit code."""
    import aiohttp

    try:
        asyncio.run(_show_output(client, job))
        while not (info := client.get_job_info(job)).status.is_terminal():
            time.sleep(0.5)
    except (OSError, RuntimeError, aiohttp.ClientError) as error:
        print_error(f"failed: the job is out of sight, and may go on: {_first_line(error)}")
        return 1
    if info.status == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None:  # it was stopped, or never began, and has no last line of its own
        print_error(f"{info.status.lower()}: {info.message}")
    return info.driver_exit_code or 1


async def _show_output(client: JobSubmissionClient, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    run_job(main)
