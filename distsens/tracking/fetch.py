"""What a run logged beside its model, found by the model's address in MLflow."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from distsens.errors import InputError
from distsens.scratch import scratch_folder
from distsens.tracking.moved import local_folder, moved_artifacts
from distsens.tracking.run import MODEL_NAME, WEIGHTS_ARTIFACT
from distsens.tracking.store import find_run, open_store, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ADDRESS = re.compile(
    rf"runs:/(?P<run>[^/]+)(/({MODEL_NAME}|weights|{re.escape(WEIGHTS_ARTIFACT)}))?/?"
    r"|models:/(?P<logged>m-[0-9a-f]+)/?"
    r"|models:/(?P<name>[^/@:]+)(/(?P<version>\d+)/?|@(?P<alias>[^/@:]+))"
)
_ADDRESSES = (
    f"runs:/<id>, runs:/<id>/{MODEL_NAME}, runs:/<id>/{WEIGHTS_ARTIFACT}, models:/<name>/<version>, "
    "models:/<name>@<alias> or models:/m-<id>"
)
_NOT_OURS = "not a model that a training of this project logged"


@dataclass(frozen=True)
class LoggedFiles:
    """Artifacts of a run: its id, its name, its tags, and the content of the files by path."""

    run_id: str
    name: str
    tags: Mapping[str, str]
    files: Mapping[str, bytes]


def fetch_model_files(address: str, paths: Collection[str], uri: str) -> LoggedFiles:
    """Read the weights of the model at an address, and other artifacts of the run that logged it.

    Parameters
    ----------
    address : ``runs:/<id>``, ``runs:/<id>/model`` or ``runs:/<id>/weights/model.safetensors``; ``models:/m-<id>``;
        ``models:/<name>/<version>`` or ``models:/<name>@<alias>`` of the registry.
    paths : of further artifacts; those that the run lacks are left out.
    uri : address of the store; see `check_tracking`.

    Returns
    -------
    The files, among them ``weights/model.safetensors``; see `TrackedRun.log_model`.

    Raises
    ------
    InputError : the address is none of these or leads nowhere, its run has logged no weights, or the store or its
        artifacts cannot be read.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise InputError("model", address, f"an address in MLflow is {_ADDRESSES}")
    client = open_store(uri)
    from mlflow.exceptions import MlflowException

    try:
        found = find_run(client, _run_of(client, parts))
    except MlflowException as error:
        raise InputError("model", address, f"the store does not know it ({reason(error)})") from error
    except InputError as error:
        raise InputError("model", address, error.allowed) from None
    place, files = str(found.info.artifact_uri), {}
    for before, now in moved_artifacts(uri).items():
        if place.startswith(f"{before}/"):
            place = now + place.removeprefix(before)
    for path in dict.fromkeys((WEIGHTS_ARTIFACT, *paths)):
        try:
            if place == found.info.artifact_uri:
                content = _artifact(client, found.info.run_id, path)
            else:
                content = _file(local_folder(place) / path)
        except Exception as error:  # Each kind of artifact store raises its own library's errors.
            raise InputError("model", address, f"its artifact {path} cannot be read ({reason(error)})") from error
        if content is not None:
            files[path] = content
    if WEIGHTS_ARTIFACT not in files:
        raise InputError(
            "model",
            address,
            f"{_NOT_OURS}: its run {found.info.run_id} has no {WEIGHTS_ARTIFACT} in {place}",
        )
    return LoggedFiles(found.info.run_id, found.info.run_name, dict(found.data.tags), files)


def _run_of(client: MlflowClient, address: re.Match[str]) -> str:
    """The id of the run that logged the model."""
    if address["run"]:
        return address["run"]
    model_id, source = address["logged"], None
    if not model_id:
        name = address["name"]
        if address["version"]:
            version = client.get_model_version(name, address["version"])
        else:
            version = client.get_model_version_by_alias(name, address["alias"])
        if version.run_id and not version.model_id:  # registered as MLflow 2 did
            return str(version.run_id)
        model_id, source = version.model_id, version.source
    if not model_id:
        raise InputError("model", address[0], f"{_NOT_OURS}: no run has logged what it was registered from, {source}")
    logged = client.get_logged_model(model_id)
    if logged.name != MODEL_NAME or not logged.source_run_id:
        raise InputError("model", address[0], f"{_NOT_OURS}: it was logged as {logged.name!r}")
    return str(logged.source_run_id)


def _file(path: Path) -> bytes | None:
    """Content of a file, None where there is none."""
    return path.read_bytes() if path.is_file() else None


def _artifact(client: MlflowClient, run_id: str, path: str) -> bytes | None:
    """Content of an artifact, None where the run has none of that path."""
    parent = str(PurePosixPath(path).parent)
    if path not in (artifact.path for artifact in client.list_artifacts(run_id, "" if parent == "." else parent)):
        return None
    with scratch_folder() as folder:
        return Path(client.download_artifacts(run_id, path, str(folder))).read_bytes()
