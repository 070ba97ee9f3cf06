"""Published models: of each finished run the best weights alone, in ``models/<run>/`` of the storage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from distsens.errors import InputError
from distsens.scratch import scratch_folder
from distsens.storage.checkpoint import MANIFEST, Checkpoint, CheckpointError, delete, load, load_manifest, save
from distsens.storage.json_files import write_json
from distsens.storage.local import LocalPlace
from distsens.storage.manifest import Manifest, encode
from distsens.storage.place import Place, open_place

_FOLDER = "models"


def publish(
    storage: Place,
    name: str,
    files: Mapping[str, bytes],
    *,
    epoch: int,
    experiment: str,
    metrics: Mapping[str, float],
) -> str:
    """Store a model under a name, instead of an older one, and return its address, which `fetch` takes.

    A reader gets the old model, the new one, or an error, never a mixture; the manifest lists the files with their
    SHA-256.

    Parameters
    ----------
    storage : the place of all runs.
    name : of the run; one part of a key.
    files : content by name, such as ``model.safetensors``; the name ``manifest.json`` is taken.
    epoch : that the weights are of.
    experiment : digest that identifies the experiment.
    metrics : what was measured of these weights.
    """
    if "/" in name:
        raise InputError("name", name, "must be one part, without /")
    save(storage, f"{_FOLDER}/{name}", files, epoch=epoch, experiment=experiment, metrics=metrics)
    return storage.child(_FOLDER).child(name).url


def models(storage: Place) -> dict[str, Manifest]:
    """Return the manifests of the models that are complete, by name, the oldest first."""
    start = len(_FOLDER) + 1
    manifests = {}
    for name in {key[start:].partition("/")[0] for key in storage.keys(_FOLDER)}:
        with suppress(CheckpointError):  # Without a sound manifest there is no model.
            manifests[name] = load_manifest(storage.child(_FOLDER).child(name))
    return dict(sorted(manifests.items(), key=lambda item: (item[1].created, item[0])))


def fetch(url: str) -> Checkpoint:
    """Return the model at an address, every file verified; `CheckpointError` if one is missing or altered."""
    return load(open_place(url))


def copy(storage: Place, name: str, folder: Path) -> None:
    """Copy a model into a new folder, every file verified; nothing is there unless all of it is.

    Raises
    ------
    CheckpointError : a file is missing or altered.
    OSError : the folder cannot be written.
    """
    model = load(storage.child(_FOLDER).child(name))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.parent) as made:
        whole = LocalPlace(made / "model")
        for file, content in model.files.items():
            whole.put(file, content)
        write_json(whole, MANIFEST, encode(model.manifest))
        whole.root.rename(folder)


def prune(storage: Place, keep: int, protect: Collection[str] = ()) -> None:
    """Delete all but the newest ``keep`` complete models and the names in ``protect``."""
    if keep < 1:
        raise InputError("keep", keep, "must be 1 or more")
    for name in list(models(storage))[:-keep]:
        if name not in protect:
            delete(storage, f"{_FOLDER}/{name}")
