"""No file of the project holds a secret. That none is in what a training leaves is tested on the running stack."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from clone import ROOT, project_files

NAMED = re.compile(
    r"""(?ix) (?:^|[\s,{(\["'-]|_) (?:password|passwd|secret|token|secret_access_key|secret_key|api_key)
        ["']? \s* (?:=|:\s) \s* ["']? (?P<value>[^\s"',;)\]}]{8,})"""
)
KNOWN = {
    "AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "token": re.compile(r"\b(?:ghp|gho|ghs|glpat|hf|xox[abp]|sk)[_-][A-Za-z0-9_-]{20,}\b"),
    "password in an address": re.compile(r"\w+://[^\s:/@${}<>*]+:(?P<value>[^\s/@${}<>*]{4,})@"),
}
# What stands for a secret and is none: a reference to a variable or a file, or a name of the code.
STANDS_FOR_ONE = re.compile(r"[$<*{%\[]|/|^self\b|\(|^[A-Za-z_.]+$|\.\.\.|^aws:")
EXAMPLES = ("user:password@",)


def secrets_in(text: str) -> list[str]:
    """Lines that seem to hold a secret, and why."""
    found = []
    for line in text.splitlines():
        found += [f"{kind}: {line.strip()}" for kind, pattern in KNOWN.items() if pattern.search(line)]
        found += [f"named: {line.strip()}" for one in NAMED.finditer(line) if not STANDS_FOR_ONE.search(one["value"])]
    return [one for one in found if not any(example in one for example in EXAMPLES)]


def shipped() -> list[Path]:
    """The project's files but its tests, whose secrets open nothing, and the lock file with its many hashes."""
    return [ROOT / name for name in project_files() if name.parts[0] != "tests" and name.name != "requirements.lock"]


def test_no_file_holds_a_secret() -> None:
    files = shipped()
    assert ROOT / "infra" / "stack" / "compose.yaml" in files
    found = {str(path): secrets_in(path.read_text(errors="replace")) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "aws_secret_access_key = wJalrXUtnFEMI7K7MDENGbPxRfiCYEXAMPLEKEY",
        "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI7K7MDENGbPxRfiCYEXAMPLEKEY",
        "aws_access_key_id = AKIA" + "IOSFODNN7EXAMPLE",
        'password: "hunter2hunter2"',
        "  POSTGRES_PASSWORD: correct-horse-1",
        "MLFLOW_TRACKING_PASSWORD='tr0ub4dor-3'",
        '{"token": "0123456789abcdef0123456789abcdef"}',
        "uri: postgresql://mlflow:s3cret-1@host/mlflow",
        "-----BEGIN RSA PRIVATE" + " KEY-----",
        "export HUB=hf_" + "abcdefghijklmnopqrstuvwx",
    ],
)
def test_a_planted_secret_is_found(line: str) -> None:
    assert secrets_in(line)


@pytest.mark.parametrize(
    "line",
    [
        "ROOT_SECRET_ACCESS_KEY: ${S3_SECRET_KEY:?}",
        "RAY_AUTH_TOKEN_PATH: /run/secrets/ray-token",
        'export MLFLOW_TRACKING_PASSWORD="$(cat secrets/mlflow-password)"',
        "secrets: {postgres-password: {environment: POSTGRES_PASSWORD}}",
        "ManageMasterUserPassword: true",
        "RAY_AUTH_MODE=token",
        "password = self._secret('postgres-password')",
    ],
)
def test_what_only_stands_for_a_secret_is_none(line: str) -> None:
    assert secrets_in(line) == []
