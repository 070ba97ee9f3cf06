from __future__ import annotations

import io
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsens.strict_npz import load_npz, names_in

ARRAYS: dict[str, Any] = {
    "images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "labels": np.array([1, 2]),
    "name": np.array("a name"),
    "none": np.zeros((0, 3), np.float32),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_is_read_whole_or_in_part(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "a.npz", **ARRAYS)
    content = (tmp_path / "a.npz").read_bytes()
    for found in (load_npz(content), load_npz(tmp_path / "a.npz")):
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    assert list(load_npz(content, ["labels"])) == ["labels"]
    assert names_in(tmp_path / "a.npz") == list(ARRAYS)


def array(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def archive(*members: tuple[str, bytes], packed: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def with_shape(shape: str) -> bytes:
    """An array's file whose header claims a shape that 8 bytes do not make."""
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 8


def marked(content: bytes, local: int, central: int, value: int) -> bytes:
    """The same archive with two bytes in the headers of its one member, at offsets of the local and central one."""
    changed, place = bytearray(content), content.rindex(b"PK\x01\x02")
    changed[local : local + 2] = changed[place + central : place + central + 2] = struct.pack("<H", value)
    return bytes(changed)


def swallowing(content: bytes) -> bytes:
    """The same archive of two members, where the comment on the first one is said to go over the second."""
    changed, place = bytearray(content), content.index(b"PK\x01\x02")
    changed[place + 32 : place + 34] = struct.pack("<H", content.index(b"PK\x05\x06") - place - 46 - 5)
    return bytes(changed)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is no .npz archive"),
        (b"PK\x05\x06" + b"\xff" * 18, "it is no .npz archive"),
        (array(np.ones(3)), "it is no .npz archive"),
        (archive(("a.txt", b"text")), "a.txt is no array"),
        (archive(("a.npy", b"text")), "a: "),
        (archive(("a.npy", array(np.ones(3))), ("a.npy", array(np.zeros(3)))), "'a' is there twice"),
        (archive(("a.npy", array(np.ones(3))), ("a", b"")), "'a' is there twice"),
        (archive(("a.npy", array(np.array([{}, []], dtype=object)))), "a: Python objects"),
        (
            archive(("a.npy", with_shape("(10000000000000,)"))),
            "a: int64 (10000000000000,) is not what its 136 bytes are",
        ),
        (archive(("a.npy", with_shape("(-1,)"))), "a: (-1,) is no shape"),
        (archive(("a.npy", array(np.array("text"))[:-1] + b"\xff")), "a: texts of characters that there are not"),
        (archive(("a.npy", with_shape("(2, 1)"))), "is not what its 136 bytes are"),
        (archive(("a.npy", with_shape("((((" * 500))), "a: "),
        (archive(("a.npy", array(np.ones(3))), packed=zipfile.ZIP_LZMA), "a is packed in a way that NumPy does not"),
        (marked(archive(("a.npy", array(np.ones(3)))), 6, 8, 1), "a is encrypted"),
        (swallowing(archive(("a.npy", array(np.ones(3))), ("b.npy", array(np.ones(3))))), "its list of members is"),
        (marked(archive(("a.npy", array(np.ones(3)))), 8, 10, 77), "a is packed in a way that NumPy does not write"),
        (archive(("a.npy", array(np.ones(99)))).replace(array(np.ones(99))[200:210], b"123456789A", 1), "a is damaged"),
    ],
)
def test_whatever_else_is_there_is_one_line(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        load_npz(content)
    assert "\n" not in str(caught.value)


def test_no_array_is_made_that_the_archive_has_no_bytes_for() -> None:
    """A member that is said to be of 58 TiB, in both of its headers."""
    content = bytearray(archive(("a.npy", with_shape(f"({2**43},)"))))
    place = content.rindex(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<I", 2**32 - 2)
    with pytest.raises(ValueError, match="a is said to hold 4294967294 bytes, which no 136 hold"):
        load_npz(bytes(content))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match="it is no file"):
        load_npz(tmp_path / "pipe.npz")
    with pytest.raises(FileNotFoundError):
        names_in(tmp_path / "none.npz")
