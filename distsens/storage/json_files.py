"""Small JSON documents in a place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from distsens.storage.place import Place
from distsens.strict_json import load_json


def read_json(place: Place, key: str) -> Any:
    """Return the document; `FileNotFoundError` if there is none, `ValueError` if it is not JSON. See `load_json`."""
    return load_json(place.get(key))


def write_json(place: Place, key: str, document: object) -> None:
    """Store the document, indented for people to read; `ValueError` for NaN and infinity, which JSON does not have."""
    place.put(key, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def with_digest(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with a digest of itself, ``sha256``."""
    return {**document, "sha256": _digest(document)}


def check_digest(document: Any) -> None:
    """Refuse, with `ValueError`, a document that is not as :func:`with_digest` made it."""
    if not isinstance(document, dict) or document.get("sha256") != _digest(
        {name: value for name, value in document.items() if name != "sha256"}
    ):
        raise ValueError("it does not match its own SHA-256")


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
