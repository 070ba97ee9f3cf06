"""Small JSON documents in a place."""

from __future__ import annotations

import json
from typing import Any

from distsens.storage.place import Place


def read_json(place: Place, key: str) -> Any:
    """Return the document; `FileNotFoundError` if there is none, `ValueError` if it is not JSON."""
    return json.loads(place.get(key))


def write_json(place: Place, key: str, document: object) -> None:
    """Store the document, indented for people to read; `ValueError` for NaN and infinity, which JSON does not have."""
    place.put(key, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
