"""NumPy's .npz as it is read everywhere: plain arrays, each once, no larger than what is there can say."""

from __future__ import annotations

import io
import math
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_ENCRYPTED = 0x1
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes
# No more than this comes out of a byte of deflate, whatever is in it.
_DEFLATED = 1032
_HEADER, _LAST_RECORD = 10_000, 22
_SUFFIX = ".npy"
_LONGEST, _SHOWN = 80, 10


def load_npz(
    file: bytes | Path, wanted: Sequence[str] | Callable[[list[str]], Sequence[str]] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an archive by name.

    An array is made only where the archive has as many bytes for it as its header claims, and the machine the memory.

    Parameters
    ----------
    wanted : their names, or what chooses among the names that are there; by default all of them. What else is in the
        archive is left alone.

    Raises
    ------
    OSError
        The file cannot be read at all.
    ValueError
        It is no such archive, or damaged, or an array is not there or cannot be made; in one line.
    """
    with _opened(file) as archive:
        members = _members(archive)
        names = list(members) if wanted is None else wanted(list(members)) if callable(wanted) else wanted
        if absent := [name for name in names if name not in members]:
            raise ValueError(f"it has no {absent[0]}, but {_listed(members)}")
        if sum(members[name].file_size for name in names) > _memory():
            raise ValueError("its arrays are larger than this machine's memory")
        return {name: _array(archive, name, members[name]) for name in names}


def names_in(file: bytes | Path) -> list[str]:
    """Names of the arrays in an archive, none of which is read; raises as :func:`load_npz` does."""
    with _opened(file) as archive:
        return list(_members(archive))


def _opened(file: bytes | Path) -> zipfile.ZipFile:
    if isinstance(file, Path) and not file.is_file():  # a pipe would keep its reader waiting
        raise (ValueError("it is no file") if file.exists() else FileNotFoundError(2, os.strerror(2), str(file)))
    try:
        return zipfile.ZipFile(io.BytesIO(file) if isinstance(file, bytes) else file)
    except OSError:
        raise
    except Exception as error:  # A damaged archive makes its reader raise almost anything.
        raise ValueError(f"it is no .npz archive ({error})") from None


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for one in archive.infolist():
        name = one.filename.removesuffix(_SUFFIX)
        if name in members:
            raise ValueError(f"{name[:_LONGEST]!r} is there twice")
        members[name] = one
    if _listed_members(archive) not in (len(members), 0xFFFF):
        raise ValueError("its list of members is damaged")
    return members


def _listed_members(archive: zipfile.ZipFile) -> int:
    """How many there are by the archive's last record, which zipfile does not compare; 65,535 stands for any number."""
    assert archive.fp is not None
    archive.fp.seek(-_LAST_RECORD - len(archive.comment), os.SEEK_END)
    return int.from_bytes(archive.fp.read(_LAST_RECORD)[10:12], "little")


def _listed(members: Mapping[str, object]) -> str:
    return ", ".join(name[:_LONGEST] for name in list(members)[:_SHOWN]) or "nothing"


def _array(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    shown = name[:_LONGEST]
    if not member.filename.endswith(_SUFFIX):
        raise ValueError(f"{shown} is no array")
    if member.flag_bits & _ENCRYPTED:
        raise ValueError(f"{shown} is encrypted")
    if member.compress_type not in _PACKED:
        raise ValueError(f"{shown} is packed in a way that NumPy does not write")
    if member.file_size > member.compress_size * _DEFLATED + _HEADER:
        raise ValueError(f"{shown} is said to hold {member.file_size} bytes, which no {member.compress_size} hold")
    try:
        with archive.open(member) as stream:
            dtype, shape = _header(stream)
            if dtype.hasobject:
                raise ValueError("Python objects, which are not read")
            if math.prod(shape) * dtype.itemsize != member.file_size - stream.tell():
                raise ValueError(f"{dtype} {shape} is not what its {member.file_size} bytes are")
            stream.seek(0)
            array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=_HEADER)
            if stream.read(1):  # to the end, where the archive's checksum of it is compared
                raise ValueError("there is more than the array")
            if dtype.kind == "U" and (np.frombuffer(array.tobytes(), dtype.byteorder + "u4") > sys.maxunicode).any():
                raise ValueError("texts of characters that there are not")
            return array
    except MemoryError:
        raise ValueError(f"{shown} is larger than this machine's memory") from None
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{shown} is damaged ({error})") from None
    except Exception as error:
        raise ValueError(f"{shown}: {' '.join(str(error).split())[:400]}") from None


def _header(stream: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read:
        raise ValueError(f"version {version} of an array's header is not read")
    shape, _, dtype = read[version](stream, max_header_size=_HEADER)
    if not all(isinstance(one, int) and one >= 0 for one in shape):
        raise ValueError(f"{shape} is no shape")
    return dtype, shape


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
