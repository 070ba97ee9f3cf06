"""Where a run comes from: user, commit, versions, workers, Ray job."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray

from distsens.distributed.cluster import job_submission_id
from distsens.experiment import Workers

COMMIT_VARIABLE = "DISTSENS_COMMIT"
_UNKNOWN = "unknown"


def provenance_tags(workers: Workers, job: str) -> dict[str, str]:
    """Where a run of this job comes from: commit, versions, workers, Ray job."""
    commit = code_commit()
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": job,
        "distsens.commit": commit,
        "distsens.workers": str(workers.num),
        "distsens.ray_job": ray.get_runtime_context().get_job_id(),
        **{f"version.{package}": found for package, found in package_versions().items()},
    }
    if commit != _UNKNOWN:
        tags["mlflow.source.git.commit"] = commit.removesuffix("-dirty")
    if submission := job_submission_id():
        tags["distsens.ray_submission"] = submission
    return tags


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for package in ("distsens", "torch", "torchvision", "ray", "mlflow", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a submitted working folder is not installed
            versions[package] = "not installed"
    return versions


def _user() -> str:
    """The user's name, or number: in a container a user may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def code_commit() -> str:
    """The commit of the code that runs, marked where the folder holds changes to it.

    Ray leaves ``.git`` out of what it uploads with a submitted job: there the variable says it.
    """
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT_VARIABLE, _UNKNOWN)
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")
