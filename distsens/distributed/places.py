"""Where what a run uses and writes is: written down when it begins, and followed where it was moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distsens.errors import InputError
from distsens.experiment import merge
from distsens.redaction import without_secrets
from distsens.storage import Move, Place
from distsens.strict_json import load_json
from distsens.tracking import absolute_uri, beside, holds_run

# By section of an experiment, an examination or a sweep's recipe: what lies in the storage, and what need not.
_OF_RUNS = (("model", "address"), (None, "transfer"), (None, "examples"))
_INPUTS = (("model", "weights"), ("data", "root"), ("data", "extra"), (None, "baseline"))


def pinned(given_uri: str | None, storage: Place, tracking_uri: str) -> dict[str, Any]:
    """Fields with the absolute addresses of a storage and an MLflow store, which what is resumed goes back to.

    An address with a secret in it is not written down: it stays in the environment, for the resumed run as well.
    """
    store = absolute_uri(tracking_uri)
    uri = store if store == without_secrets(store) else given_uri
    return {"storage": {"path": storage.url}, "tracking": {"uri": uri}}


def followed(fields: Mapping[str, Any], place: Place, run_id: str) -> dict[str, Any]:
    """Stored fields with the places where things are now, by where their run was found.

    Its storage is what it was found in, its MLflow store the one that lies there as it did before, moved or copied, if
    that knows the run; and what lay beside is looked for beside.

    Parameters
    ----------
    fields : as stored: of an experiment, an examination, or a sweep's recipe.
    place : of the run, evaluation or sweep.
    run_id : of its MLflow run.
    """
    storage = place.url.rstrip("/").rpartition("/")[0]
    before = _said(fields, "storage", "path")
    changed = merge(fields, {"storage": {"path": storage}})
    move = None if before is None else Move.between(before, storage)
    if move is None:
        return changed
    uri = _said(fields, "tracking", "uri")
    store = None if uri is None else beside(uri, move.before, move.now)
    if store is not None and holds_run(store, run_id):
        changed = merge(changed, {"tracking": {"uri": store}})
    for names, chosen in ((_OF_RUNS, move.followed), (_INPUTS, move.found)):
        for section, name in names:
            address = _said(fields, section, name)
            if address is not None:
                moved = {name: chosen(address)}
                changed = merge(changed, moved if section is None else {section: moved})
    return changed


def named_document(place: Place, key: str, name: str, of: str) -> Any:
    """The JSON document that makes a place what it was named as, to be resumed; `ValueError` where it is none.

    Raises
    ------
    InputError : it is not there, or cannot be read.
    """
    try:
        content = place.get(key)
    except FileNotFoundError:
        raise InputError("resume", name, f"there is no {key} of {of} in {place.url}") from None
    except OSError as error:
        raise InputError("resume", name, f"its {key} cannot be read: {error}") from None
    return load_json(content)


def _said(fields: Mapping[str, Any], section: str | None, name: str) -> str | None:
    """An address in stored fields; what is none is left as it is, for whoever parses them to refuse."""
    within = fields if section is None else fields.get(section)
    address = within.get(name) if isinstance(within, Mapping) else None
    return address if isinstance(address, str) else None
