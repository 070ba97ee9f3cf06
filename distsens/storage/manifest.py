"""The list of what a checkpoint holds, by which a reader knows that nothing is missing or altered."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field

from distsens.storage.json_files import check_digest, with_digest
from distsens.strict_json import Document, load_as

FORMAT = 2
"""Version of the manifest's layout."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> FileRecord:
        """Return the record of a file with this content."""
        return cls(len(data), hashlib.sha256(data).hexdigest())

    def fault(self, data: bytes) -> str | None:
        """Return how ``data`` differs from the recorded file, in words; None if it does not."""
        if len(data) != self.size:
            return f"{len(data)} bytes, the manifest says {self.size}"
        if FileRecord.of(data) != self:
            return "its SHA-256 is not the one in the manifest"
        return None


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is: the epoch, a digest that identifies the experiment, the metrics, and its files by name.

    created : when it was written, UTC in ISO 8601; later ones are later in the alphabet too.
    """

    epoch: int
    experiment: str
    metrics: Mapping[str, float]
    files: Mapping[str, FileRecord]
    created: str


def encode(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest as a JSON document that carries a digest of itself."""
    document = {
        "format": FORMAT,
        "epoch": manifest.epoch,
        "experiment": manifest.experiment,
        "metrics": {name: _encode_number(value) for name, value in manifest.metrics.items()},
        "files": {name: asdict(record) for name, record in manifest.files.items()},
        "created": manifest.created,
    }
    return with_digest(document)


def decode(document: Any) -> Manifest:
    """Return the manifest in a JSON document.

    Raises
    ------
    ValueError
        The document is not a manifest, of a format that this version does not read, or altered.
    """
    if not isinstance(document, dict) or "format" not in document:
        raise ValueError("not a manifest")
    if document["format"] != FORMAT:
        raise ValueError(f"manifest of format {document['format']!r}, this version reads format {FORMAT}")
    check_digest(document)
    content = load_as(_Document, document)
    return Manifest(
        epoch=content.epoch,
        experiment=content.experiment,
        metrics={name: float(value) for name, value in content.metrics.items()},
        files={name: FileRecord(one.size, one.sha256) for name, one in content.files.items()},
        created=content.created,
    )


class _File(Document):
    size: int = Field(ge=0)
    sha256: str


class _Document(Document):
    epoch: int = Field(ge=0)
    experiment: str
    metrics: dict[str, float | Literal["nan", "inf", "-inf"]]
    files: dict[str, _File]
    created: str


def _encode_number(value: float) -> float | str:
    """JSON has no NaN and no infinity: they become "nan", "inf" and "-inf", which `float` reads back."""
    value = float(value)
    return value if math.isfinite(value) else str(value)
