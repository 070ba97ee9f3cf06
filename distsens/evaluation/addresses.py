"""Find the classifier behind an address: in MLflow, in the storage of runs, or in a file of weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from distsens import models
from distsens.errors import InputError, printable
from distsens.evaluation.subject import Architecture, Subject
from distsens.experiment import Experiment
from distsens.storage import (
    RUN_FILE,
    Checkpoint,
    CheckpointError,
    Checkpoints,
    FileRecord,
    Place,
    open_place,
    published,
    read_run,
)
from distsens.strict_json import Document, load_as
from distsens.strict_yaml import load_yaml
from distsens.tracking import WEIGHTS_ARTIFACT, fetch_model_files
from distsens.training import WEIGHTS, best_epoch, stored_history

_TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
_EXPERIMENT = "experiment.yaml"
_MANIFEST = "manifest.json"
_MANIFEST_ARTIFACT = "checkpoint.json"

_IN_MLFLOW = ("runs:/", "models:/")
_WITH_FACTORY = re.compile(r"(?P<address>.+)@(?P<factory>[A-Za-z_][\w.]*:[\w.-]+|[A-Za-z_]\w*)")
_SELECTED = re.compile(r"(.+)#(best|last|\d+)")
_CHECKPOINT_FOLDER = re.compile(r"(.+)/checkpoints/epoch-(\d+)")
_PUBLISHED_FOLDER = re.compile(r"(.+)/models/([^/]+)")


def find_subject(
    address: str,
    *,
    factory: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    small_images: bool = False,
    tracking_uri: str | None = None,
) -> Subject:
    """Read the classifier at an address, whole, and verified where a digest was stored with it.

    Parameters
    ----------
    address : one of

        - the folder of a run, or its ``s3://bucket/prefix``: the best epoch by validation. ``<run>#last`` is its newest
          checkpoint and ``<run>#12`` that of epoch 12, as is ``<run>/checkpoints/epoch-0012``.
        - a published model, ``<storage>/models/<run>``.
        - in MLflow ``runs:/<id>``, ``models:/<name>/<version>``, ``models:/<name>@<alias>`` or ``models:/m-<id>``: the
          best epoch of a run, whose weights the training logged.
        - a file of weights, of whoever's training, or an entry of it, ``net.pt#ema``; see
          :func:`distsens.models.load_initial_weights`.

        What has no experiment beside it may name its own factory behind an ``@``; see :func:`split_factory`.
    factory : a name of the catalogue of models or ``package.module:function``, see :func:`distsens.models.build`. For
        weights without an experiment; one in the address comes before it. Of weights with an experiment it can only
        repeat what that names, which is then imported even where it is not installed.
    mean, std : of the [0, 1] pixels, as the factory's network wants them, one number per channel or one for all. The
        default is what a whole `PixelModel`'s weights hold, else 0 and 1.
    small_images : see :func:`distsens.models.build`.
    tracking_uri : address of the MLflow store; default ``$MLFLOW_TRACKING_URI``.

    Raises
    ------
    InputError
        There is nothing to judge, it cannot be read or is damaged, or a setting is missing or does not belong to it.
    """
    address, own = split_factory(address)
    # Of several models that it is said of, those with factories of their own need not be torchvision's.
    small_images = small_images and (own is None or own.startswith("torchvision:"))
    given = _Given(own or factory, mean, std, small_images)
    try:
        if address.startswith(_IN_MLFLOW):
            return _in_mlflow(address, given, tracking_uri)
        if is_weights_file(address):
            return _in_file(address, given)
        return _in_storage(address, given)
    except (CheckpointError, OSError) as error:
        raise InputError("model", address, " ".join(str(error).split())) from error
    except InputError as error:
        if error.field == "checkpoint":
            raise InputError("model", address, f"its {error.value} {error.allowed}") from error
        if error.field not in ("storage.path", "run", "model.weights"):
            raise
        raise InputError("model", error.value, error.allowed) from error


def absolute_address(address: str) -> str:
    """The same address of :func:`find_subject` for whoever is in another folder."""
    if not address or "://" in address or address.startswith(_IN_MLFLOW):
        return address
    return str(Path(os.path.expanduser(address)).absolute())


def selected_epoch(address: str) -> str:
    """Which epoch of a run an address of :func:`find_subject` selects: ``best``, ``last`` or a number."""
    if match := _SELECTED.fullmatch(address):
        return match[2].lstrip("0") or "0"
    if folder := _CHECKPOINT_FOLDER.fullmatch(address.rstrip("/")):
        return folder[2].lstrip("0") or "0"
    return "best"


def is_weights_file(address: str) -> bool:
    """Whether an address of :func:`find_subject` is that of a file of weights, which says nothing of its network.

    In a bucket a file is told by its suffix, on a disk it is whatever is no folder.
    """
    address, _ = split_factory(address)
    if address.startswith(_IN_MLFLOW):
        return False
    return models.named_as_weights(address) or ("://" not in address and os.path.isfile(os.path.expanduser(address)))


def split_factory(address: str) -> tuple[str, str | None]:
    """Split ``net.pt@my_models:small``, or any address of weights without an experiment, from its own factory.

    The last ``@`` begins a factory where a name of the catalogue or ``package.module:function`` follows it, and a file
    of weights, or whatever is there on this disk, stands before it. A path that is there with its ``@`` is that path;
    an alias of MLflow (``models:/name@champion``) belongs to its address.
    """
    found = _WITH_FACTORY.fullmatch(address)
    if found is None or address.startswith(_IN_MLFLOW) or _is_here(address):
        return address, None
    before = found["address"]
    if not models.named_as_weights(before) and not _is_here(before):
        return address, None
    return before, found["factory"]


def said_of(address: str, said: Mapping[str, Any], beside: Sequence[str]) -> dict[str, Any]:
    """Fields of one of several models: what is said of files of weights is said of all of them, and of no run.

    Parameters
    ----------
    address : of the model.
    said : what was said of the architecture, once for all models: arguments of :func:`find_subject`.
    beside : addresses of all models.
    """
    applies = is_weights_file(address) or not any(map(is_weights_file, beside))
    return {**(said if applies else {}), "address": address}


def _is_here(address: str) -> bool:
    return "://" not in address and os.path.exists(os.path.expanduser(address))


@dataclass(frozen=True)
class _Given:
    """What was said of the architecture, in case the weights come without an experiment."""

    factory: str | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    small_images: bool

    def architecture(self, address: str, weights: bytes, experiment: Experiment | None) -> Architecture:
        """The architecture that takes the weights."""
        if experiment is not None:
            own = experiment.model
            for option, value in vars(self).items():
                if value not in (None, False) and (option, value) != ("factory", own.name):
                    raise InputError(option, value, f"leave it out: the experiment of {address} says what its model is")
            models.check_named(address, own.name, () if self.factory is None else (self.factory,))
            return Architecture(own.name, own.mean, own.std, own.small_images)
        if self.factory is None:
            raise InputError(
                "factory",
                None,
                f"{address} has no experiment beside it, so name the model of the catalogue or the "
                "package.module:function that builds its network",
            )
        stored = models.normalisation_of(models.state_of(weights, WEIGHTS))
        mean, std = stored or (Architecture.mean, Architecture.std)
        return Architecture(
            self.factory,
            mean if self.mean is None else tuple(self.mean),
            std if self.std is None else tuple(self.std),
            self.small_images,
        )


def _in_file(address: str, given: _Given) -> Subject:
    file, part = models.split_part(address)
    if "://" in file:
        folder, _, name = file.rpartition("/")
        content = open_place(folder).get(name)
    else:
        content = models.read_weights(Path(os.path.expanduser(file)))
    found = models.find_state(content, address, part)
    as_it_is = part is None and not found.entry and file.lower().endswith(".safetensors")
    weights = content if as_it_is else models.state_to_bytes(found.state)
    name = re.sub(r"(\.pth|\.pt)?\.[^.]+$", "", Path(file).name, flags=re.IGNORECASE)
    return Subject(
        name + (f"-{part}" if part else ""),
        address,
        given.architecture(address, weights, None),
        weights,
        notices=tuple(
            f"{address} holds {other} beside {found.entry}, which is taken: {file}#{other} names the other"
            for other in map(printable, found.others)
        ),
    )


def _in_mlflow(address: str, given: _Given, tracking_uri: str | None) -> Subject:
    uri = tracking_uri or os.environ.get(_TRACKING_VARIABLE)
    if not uri:
        raise InputError("tracking.uri", None, f"say in which MLflow store {address} is, or set {_TRACKING_VARIABLE}")
    logged = fetch_model_files(address, (_EXPERIMENT, _MANIFEST_ARTIFACT), uri)
    weights, text = logged.files[WEIGHTS_ARTIFACT], logged.files.get(_EXPERIMENT)
    manifest = logged.files.get(_MANIFEST_ARTIFACT)
    epoch = None if manifest is None else _verified_epoch(manifest, weights, address)
    unverified = f"the run of {address} logged no digest to verify its weights by"
    experiment = None if text is None else _experiment_in(text, address)
    return Subject(
        logged.tags.get("distsens.run", logged.name),
        address,
        given.architecture(address, weights, experiment),
        weights,
        experiment,
        run=logged.tags.get("distsens.run"),
        epoch=epoch,
        mlflow_run_id=logged.run_id,
        notices=(unverified,) if manifest is None else (),
    )


class _LoggedFile(Document):
    size: int
    sha256: str


class _Logged(Document):
    """What the logged manifest of a checkpoint is read for."""

    epoch: int = Field(ge=0)
    files: dict[str, _LoggedFile]


def _verified_epoch(manifest: bytes, weights: bytes, address: str) -> int:
    """The epoch that the weights are of, by the manifest of their checkpoint that was logged beside them."""
    try:
        document = load_as(_Logged, manifest)
        record = FileRecord(**document.files[WEIGHTS].model_dump())
    except (LookupError, ValueError) as error:
        raise InputError("model", address, f"its artifact {_MANIFEST_ARTIFACT} is damaged") from error
    if fault := record.fault(weights):
        raise InputError("model", address, f"its artifact {WEIGHTS_ARTIFACT} is damaged: {fault}")
    return document.epoch


def _in_storage(address: str, given: _Given) -> Subject:
    url, selected = match.groups() if (match := _SELECTED.fullmatch(address)) else (address, "best")
    place = open_place(url)
    if folder := _CHECKPOINT_FOLDER.fullmatch(place.url):
        run = open_place(folder[1])
        if run.keys(RUN_FILE):
            return _of_run(run, folder[2], address, given)
    if place.keys(RUN_FILE):
        return _of_run(place, selected, address, given)
    if match is None and place.keys(_MANIFEST):
        return _of_folder(place, address, given)
    raise InputError(
        "model",
        address,
        f"there is no run (with a {RUN_FILE}) and no published model or checkpoint (with a {_MANIFEST}) in {place.url}",
    )


def _of_run(run: Place, selected: str, address: str, given: _Given) -> Subject:
    """The best epoch of a run, its newest checkpoint, or the one of an epoch."""
    record = read_run(run)
    experiment = _experiment(record.experiment, RUN_FILE, address)
    checkpoint, notices = _selected(Checkpoints(run), selected, address)
    if WEIGHTS not in checkpoint.files:
        raise InputError("model", address, f"its checkpoint of epoch {checkpoint.manifest.epoch} holds no {WEIGHTS}")
    return Subject(
        run.url.rpartition("/")[2],
        address,
        given.architecture(address, checkpoint.files[WEIGHTS], experiment),
        checkpoint.files[WEIGHTS],
        experiment,
        run=run.url.rpartition("/")[2],
        epoch=checkpoint.manifest.epoch,
        mlflow_run_id=record.mlflow_run_id,
        notices=notices,
    )


def _selected(checkpoints: Checkpoints, selected: str, address: str) -> tuple[Checkpoint, tuple[str, ...]]:
    """A checkpoint, and a line for each newer one that had to be passed over."""
    if selected.isdecimal():
        epochs = [manifest.epoch for manifest in checkpoints.manifests()]
        if int(selected) not in epochs:
            raise InputError("model", address, f"the run keeps no epoch {int(selected)}, but {epochs}")
        return checkpoints.load(int(selected)), ()
    newest = checkpoints.newest()
    if newest.checkpoint is None:
        raise InputError("model", address, newest.skipped[0] if newest.skipped else "the run has no checkpoint yet")
    notices = tuple(f"skipped: {line}" for line in newest.skipped)
    if selected == "last":
        return newest.checkpoint, notices
    best = best_epoch(stored_history(newest.checkpoint.files))
    if best is None or best.epoch == newest.checkpoint.manifest.epoch:
        return newest.checkpoint, notices
    return checkpoints.load(best.epoch), notices


def _of_folder(place: Place, address: str, given: _Given) -> Subject:
    """A published model, or a checkpoint apart from its run."""
    checkpoint = published.fetch(place.url)
    if WEIGHTS not in checkpoint.files:
        raise InputError("model", address, f"the checkpoint holds no {WEIGHTS}")
    weights, text = checkpoint.files[WEIGHTS], checkpoint.files.get(_EXPERIMENT)
    experiment = None if text is None else _experiment_in(text, address)
    name, mlflow_run_id = place.url.rpartition("/")[2], None
    if folder := _PUBLISHED_FOLDER.fullmatch(place.url):
        run = open_place(f"{folder[1]}/{folder[2]}")
        mlflow_run_id = read_run(run).mlflow_run_id if run.keys(RUN_FILE) else None
    return Subject(
        name,
        address,
        given.architecture(address, weights, experiment),
        weights,
        experiment,
        run=None if experiment is None else name,
        epoch=checkpoint.manifest.epoch,
        mlflow_run_id=mlflow_run_id,
    )


def _experiment_in(text: bytes, address: str) -> Experiment:
    try:
        fields = load_yaml(text.decode("utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError("model", address, f"its {_EXPERIMENT} is damaged: {' '.join(str(error).split())}") from error
    return _experiment(fields, _EXPERIMENT, address)


def _experiment(fields: object, file: str, address: str) -> Experiment:
    if not isinstance(fields, Mapping):
        raise InputError("model", address, f"its {file} is damaged: it holds no fields of an experiment")
    try:
        return Experiment.parse(fields)
    except InputError as error:
        raise InputError("model", address, f"its {file} is not of this version ({error})") from error
