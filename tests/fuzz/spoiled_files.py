"""Files that are not what they were: bits flipped, cut, spliced with others, or with other values in their places."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

_TEXTS = (
    "",
    "x",
    "nan",
    "inf",
    "8/255",
    "../..",
    "/",
    "\0",
    "\x1b[2J",
    "[red]",
    "\udcff",
    "é" * 300,
    "a" * 5000,
    "1" * 400,
)
_NUMBERS = (0, 1, -1, 2, 3, 7, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, 1e30)
_NO_NUMBERS = (float("nan"), float("inf"), float("-inf"))


def spoiled_bytes(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes of one file with something done to them that disks, networks and people do."""
    changed = bytearray(content)
    place = draw.randrange(len(changed) + 1)
    length = draw.choice((1, 2, 4, 16, 100, 1000))
    kind = draw.randrange(9)
    if kind <= 2:
        for _ in range((1, 3, 30)[kind]):
            if changed:
                bit = draw.randrange(8 * len(changed))
                changed[bit // 8] ^= 1 << bit % 8
    elif kind == 3:
        del changed[place:]
    elif kind == 4:
        del changed[place : place + length]
    elif kind == 5:
        changed[place:place] = draw.randbytes(length)
    elif kind == 6:
        changed[place : place + length] = draw.choice((b"\0", b"\xff", b"9", b"{")) * length
    elif kind == 7:
        other = draw.choice(others)
        start = draw.randrange(len(other) + 1)
        changed[place:] = other[start:]
    else:
        changed = bytearray(draw.choice((b"", draw.choice(others), b"{}", b"[]", b"null", content * 2, content[::-1])))
    return bytes(changed)


def hostile(draw: random.Random, deep: int = 0) -> Any:
    """A value of any kind."""
    kind = draw.randrange(8 if deep < 3 else 5)
    if kind == 0:
        return draw.choice((None, True, False))
    if kind == 1:
        return draw.choice(_NUMBERS)
    if kind == 2:
        return draw.choice(_NO_NUMBERS)
    if kind <= 4:
        return draw.choice(_TEXTS)
    if kind == 5:
        return [hostile(draw, deep + 1) for _ in range(draw.choice((0, 1, 3)))]
    if kind == 6:
        return {draw.choice((*_TEXTS, "a", "epoch")): hostile(draw, deep + 1) for _ in range(draw.choice((0, 1, 3)))}
    return _nested(draw.choice((5, 50, 400)))


def _nested(deep: int) -> Any:
    value: Any = []
    for _ in range(deep):
        value = [value]
    return value


def spoiled_document(draw: random.Random, document: Any, value: Callable[[random.Random], Any] = hostile) -> Any:
    """A document of dicts and lists with one value that is another, is gone, or is where it was not."""
    changed = copy.deepcopy(document)
    places = list(_places(changed))
    if not places or draw.random() < 0.03:
        return value(draw)
    within, key = draw.choice(places)
    kind = draw.randrange(10)
    if kind == 0:
        del within[key]
    elif kind == 1 and isinstance(within, dict):
        within[draw.choice((*_TEXTS, "format", "sha256", "images"))] = within.pop(key)
    elif kind == 2:
        other, there = draw.choice(places)
        within[key] = copy.deepcopy(other[there])
    elif kind == 3 and isinstance(within[key], int | float) and not isinstance(within[key], bool):
        within[key] = draw.choice(
            (-within[key], within[key] + 1, within[key] * 1000, float(within[key]), str(within[key]))
        )
    else:
        within[key] = value(draw)
    return changed


def _places(document: Any) -> Any:
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in list(pairs):
        yield document, key
        yield from _places(value)


def spoiled_json(draw: random.Random, document: Any) -> bytes:
    """A document's file with another value, or written as JSON should not be."""
    changed = spoiled_document(draw, document)
    text = json.dumps(changed)
    kind = draw.randrange(12)
    if kind == 0:
        return text.encode("utf-16")
    if kind == 1:
        return ("[" * 100_000 + text).encode()
    if kind == 2 and text[:1] == "{":
        return (text[:-1] + ", " + text[1:]).encode()
    if kind == 3:
        return text.replace("1", "1" * 5000, 1).encode()
    return text.encode()


def spoiled_npz(draw: random.Random, arrays: Mapping[str, Any]) -> bytes:
    """An archive of arrays of which one is another, or is not what its headers say."""
    members = {f"{name}.npy": _npy(np.asarray(array)) for name, array in arrays.items()}
    name = draw.choice(list(arrays))
    array, kind = np.asarray(arrays[name]), draw.randrange(9)
    if kind == 0:
        del members[f"{name}.npy"]
    elif kind == 1:
        members[draw.choice(("x", f"{name}", f"{name}.txt", "../x.npy", "é.npy"))] = members.pop(f"{name}.npy")
    elif kind == 2:
        members[f"{name}.npy"] = _npy(_other_array(draw, array))
    elif kind == 3:
        members[f"{name}.npy"] = _with_header(draw, members[f"{name}.npy"])
    elif kind == 4:
        members[f"{name}.npy"] = spoiled_bytes(draw, members[f"{name}.npy"], list(members.values()))
    buffer = io.BytesIO()
    packed = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(buffer, "w", packed) as file:
        for member, content in members.items():
            file.writestr(zipfile.ZipInfo(member), content, packed)
        if kind == 5:
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(_other_array(draw, array)))
    content = buffer.getvalue()
    return _with_flags(draw, content) if kind == 6 else content


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _other_array(draw: random.Random, array: Any) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: array[()] if array.ndim == 0 else array.reshape(-1)[0],
        lambda: array[None],
        lambda: array[:-1] if array.ndim else array,
        lambda: array.reshape(-1),
        lambda: np.array([{}, None], dtype=object),
        lambda: array.astype(str),
        lambda: array.astype("O"),
        lambda: np.zeros(array.shape, [("a", "<i4")]),
        lambda: np.zeros(array.shape, draw.choice(("<f8", ">i4", "<c16", "?", "<M8[s]", "<u8", "V3", "<f2"))),
        lambda: np.full(array.shape, np.nan),
        lambda: np.full(array.shape, draw.choice((-1, 2**62, 10))),
        lambda: np.zeros((0, *array.shape[1:]), array.dtype),
        lambda: np.zeros((1,) * 30, array.dtype),
    ]
    try:
        return draw.choice(kinds)()
    except (TypeError, ValueError):  # as texts that are no numbers
        return np.zeros(0)


def _with_header(draw: random.Random, npy: bytes) -> bytes:
    """An array's file whose header claims another shape or type."""
    shape = draw.choice(
        ("(63000000000000,)", "(-1,)", "()", "(1" + ", 1" * 40 + ")", "(" * 3000, "None", "(2, 2**70)", "(True,)")
    )
    descr = draw.choice(("'|u1'", "'<i8'", "'|O'", "'<U900000000'", "[('a', '<i4')]", "'x'", "None", "1"))
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    (length,) = struct.unpack("<H", npy[8:10])
    return npy[:8] + struct.pack("<H", len(header)) + header + npy[10 + length :]


def _with_flags(draw: random.Random, archive: bytes) -> bytes:
    """An archive with another number in a header of a member: encrypted, packed otherwise, of another size."""
    changed = bytearray(archive)
    place = archive.find(b"PK\x01\x02")
    for _ in range(draw.choice((1, 2))):
        offset, size = draw.choice(((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4)))
        value = draw.choice((0, 1, 8, 9, 12, 14, 99, 2 ** (8 * size) - 2, 2 ** (8 * size) - 1, 2 ** (8 * size - 1)))
        changed[place + offset : place + offset + size] = value.to_bytes(size, "little")
    return bytes(changed)


def spoiled_rows(draw: random.Random, rows: pd.DataFrame) -> pd.DataFrame:
    """A table of which a column is another, or rows are others."""
    changed, kind = rows.copy(), draw.randrange(8)
    name = draw.choice(list(rows))
    if kind == 0:
        return changed.drop(columns=name)
    if kind == 1:
        return changed.rename(columns={name: draw.choice(("x", "broken/x", "image", "layer"))})
    if kind == 2:
        return changed.iloc[draw.choice((slice(0), slice(1), slice(None, None, -1)))]
    if kind == 3:
        return pd.concat([changed, changed.iloc[:1]], ignore_index=True)
    if kind == 4:
        changed[name] = changed[name].astype("string")
    elif kind == 5:
        changed[name] = None
    elif kind == 6:
        changed[name] = [draw.choice((0, 1, -1, 2**40)) for _ in range(len(changed))]
    else:
        changed[name] = [[1, 2]] * len(changed)
    return changed


def spoiled_state(draw: random.Random, state: Any) -> Any:
    """What a checkpoint holds, with another value somewhere."""

    def value(draw: random.Random) -> Any:
        if draw.random() < 0.5:
            return hostile(draw, 2)
        shape = draw.choice(((), (0,), (1,), (3, 3), (2, 1, 1)))
        filled = torch.full(shape, draw.choice((0.0, 1.0, float("nan"), 1e30)))
        return draw.choice(
            (filled, filled.long(), filled.bool(), filled.to(torch.complex64), filled.to_sparse() if shape else filled)
        )

    return spoiled_document(draw, state, value)
