"""A table as a Parquet file that says what it is about and carries the digest of all its bytes.

Parquet itself notices neither a bit that was flipped in a value nor that two files were exchanged.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distsens.errors import said
from distsens.strict_json import load_json

if TYPE_CHECKING:
    import pandas as pd

_ABOUT = b"distsens.about"
_SEAL = b"distsens.sha256"
# No Base64, in which Parquet's footer repeats the schema, has a colon.
_MARK = b"SHA-256 of this file, were these digits zeros: "
_ZEROS = b"0" * 64


@dataclass(frozen=True, eq=False)
class SealedTable:
    """A table that was read. ``about`` is None where the file carries no seal, as those of earlier versions."""

    rows: pd.DataFrame
    about: Mapping[str, Any] | None


def seal(rows: pd.DataFrame, about: Mapping[str, Any]) -> bytes:
    """A Parquet file of the rows, sealed; any reader of Parquet reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(rows, preserve_index=False)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_ABOUT: json.dumps(about).encode(), _SEAL: _MARK + _ZEROS})
    content = buffer.getvalue()
    start = content.rfind(_MARK) + len(_MARK)
    return content[:start] + _digest(content, start) + content[start + len(_ZEROS) :]


def unseal(content: bytes, *, nullable: bool = False) -> SealedTable:
    """Read a file of :func:`seal`, or an older one without a seal.

    Parameters
    ----------
    nullable : read columns as pandas' types of which values may be missing.

    Raises
    ------
    ValueError
        It is damaged; in one line.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    mark = content.rfind(_MARK)
    sealed = mark >= 0
    if sealed:
        start = mark + len(_MARK)
        if content[start : start + len(_ZEROS)] != _digest(content, start):
            raise ValueError("its SHA-256 is not the one that it carries")
    try:
        about = load_json(pq.read_metadata(io.BytesIO(content)).metadata[_ABOUT]) if sealed else None
        backend: dict[str, Any] = {"dtype_backend": "numpy_nullable"} if nullable else {}
        rows = pd.read_parquet(io.BytesIO(content), **backend)
    except Exception as error:  # A damaged file makes its reader raise almost anything.
        raise ValueError(f"it is no Parquet file that can be read ({said(error)})") from None
    if about is not None and not isinstance(about, dict):
        raise ValueError("it does not say what it is about")
    return SealedTable(rows, about)


def _digest(content: bytes, start: int) -> bytes:
    blank = content[:start] + _ZEROS + content[start + len(_ZEROS) :]
    return hashlib.sha256(blank).hexdigest().encode()
