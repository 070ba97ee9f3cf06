"""What is in a file of weights, whoever wrote it: named tensors, told by its content, and read without running it."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from distsens.errors import InputError
from distsens.models.inert import Inert, globals_of, load_inert, protocol_of
from distsens.models.unlike import what_it_is
from distsens.strict_npz import load_npz

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar", ".npz", ".pkl")
"""By which an address is known to be a file's, in any case; what is in it is told by its content alone."""

# Where trainings keep the weights, and where they keep an average of them, the likeliest first.
_ENTRIES = (
    *(
        "state_dict",
        "model_state_dict",
        "model_state",
        "model",
        "net",
        "network",
        "net_state_dict",
        "network_state_dict",
    ),
    *("weights", "params", "module", "student", "classifier", "backbone"),
)
_AVERAGES = (
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "model_ema_state_dict", "ema", "params_ema"),
    *("swa_state_dict", "teacher"),
)
_FIELD = "model.weights"
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save wrote first before version 1.6
_SAFETENSORS_HEADER = 100_000_000
_PROTOCOL = 3
_DAMAGED = "is damaged or was cut off"
_CHUNK = 2**20
_BLOCKED = ("sys", "os", "posix", "nt")
_SHOWN, _LONGEST = 6, 80
_DEEPEST = 4
_PART = re.compile(r"(?P<file>.+)#(?P<part>[\w.-]+)")


@dataclass(frozen=True)
class FoundState:
    """Named tensors of a file: those of its ``entry``, "" for the file's own; ``others`` could have been meant too."""

    state: dict[str, Tensor]
    entry: str = ""
    others: tuple[str, ...] = ()


def named_as_weights(address: str) -> bool:
    """Whether an address ends as that of a file of weights does, perhaps with ``#entry`` behind it."""
    return _without_part(address).lower().endswith(WEIGHTS_SUFFIXES)


def split_part(address: str) -> tuple[str, str | None]:
    """Split ``net.pt#ema`` into the file and its entry; a path that is there with its ``#`` is that path."""
    found = _PART.fullmatch(address)
    if found is None or os.path.exists(os.path.expanduser(address)):
        return address, None
    return found["file"], found["part"]


def _without_part(address: str) -> str:
    found = _PART.fullmatch(address)
    return address if found is None else found["file"]


def read_weights(path: Path) -> bytes:
    """Content of a weights file; `InputError` if it cannot be read."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would keep its reader waiting
            raise ValueError("it is no file")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(_FIELD, str(path), f"cannot be read ({reason})") from error


def state_of(content: bytes, name: str, part: str | None = None) -> dict[str, Tensor]:
    """The named tensors of a file's content; see :func:`find_state`."""
    return find_state(content, name, part).state


def find_state(content: bytes, name: str, part: str | None = None) -> FoundState:
    """The named tensors in a file's content; no code of it runs.

    Parameters
    ----------
    content : of a safetensors file, a file of ``torch.save`` of any version, or an npz of arrays.
    name : how messages call the file.
    part : the entry that is meant, as in ``optimizer.ema``, or what the names of the tensors that are meant begin with;
        default the usual one, weights before averages of them.

    Raises
    ------
    InputError
        The file holds no such tensors: what it is, or what was found in it.
    """
    loaded = _loaded(content, name)
    found = _usual(loaded) if part is None else FoundState(_part(loaded, part, name), part)
    if found is None:
        _refuse(name, f"holds no state dict, a dict of names and tensors, but {_described(loaded)}")
    _check_dense(found.state, name)
    return replace(found, state=without_prefix(found.state, "module."))


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same without a prefix that all names have."""
    if all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def _loaded(content: bytes, name: str) -> Any:
    """What a file holds, with an inert stand-in for all that is no tensor, text, number or container of them."""
    if _is_safetensors(content):
        try:
            return safetensors.torch.load(content)
        except Exception as error:  # A damaged file makes its reader raise almost anything.
            raise InputError(_FIELD, name, "is a safetensors file that is damaged or was cut off") from error
    if content[:1] == b"\x80" and content[2:].startswith(_LEGACY):
        return _saved_by_torch(content, name)
    if (inside := _members(content, name)) is not None:
        program = any("/code/" in one for one in inside)
        if not program and any(re.fullmatch(r"([^/]+/)?data\.pkl", one) for one in inside):
            _check_sums(content, inside, name)
            return _saved_by_torch(content, name)
        if inside and all(one.endswith(".npy") for one in inside):
            return _arrays(content, name)
    raise InputError(_FIELD, name, f"is {what_it_is(content)}")


def _members(content: bytes, name: str) -> list[str] | None:
    """Names in an archive; None if it is none."""
    try:
        if not zipfile.is_zipfile(io.BytesIO(content)):
            return None
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.namelist()
    except Exception as error:  # A damaged file makes its reader raise almost anything.
        raise InputError(_FIELD, name, "is an archive that is damaged or was cut off") from error


def _check_sums(content: bytes, inside: Sequence[str], name: str) -> None:
    """Refuse an archive with a wrong checksum, at which torch itself does not look."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for one in inside:
            try:
                with archive.open(one) as stream:
                    while stream.read(_CHUNK):
                        pass
            except Exception as error:  # A damaged file makes its reader raise almost anything.
                raise InputError(_FIELD, name, f"is a file of torch.save that {_DAMAGED} ({_short(one)})") from error


def _is_safetensors(content: bytes) -> bool:
    return content[8:9] == b"{" and 2 <= int.from_bytes(content[:8], "little") <= _SAFETENSORS_HEADER


def _saved_by_torch(content: bytes, name: str) -> Any:
    try:
        named = globals_of(content)
        if blocked := [one for one in named if one.partition(".")[0] in _BLOCKED]:
            _refuse(name, f"names {_short(blocked[0])}, which no weights need: such a file is not read")
        loaded = load_inert(content)
    except InputError:
        raise
    except Exception as error:
        raise InputError(_FIELD, name, f"is a file of torch.save that {_fault(content)}") from error
    if isinstance(loaded, Inert) and loaded.is_module:
        _refuse(name, f"is a whole module of class {_short(loaded.kind)}, {_WHOLE_MODULE}")
    return loaded


_WHOLE_MODULE = "which only its author's code could read: write torch.save(model.state_dict(), FILE) instead"


def _fault(content: bytes) -> str:
    """Why the safe reader could not read a file of ``torch.save``."""
    try:
        if (protocol := protocol_of(content)) > _PROTOCOL:
            return f"is written in protocol {protocol} of pickle, where 2, its own, can be read safely: save it anew"
        if any(one.startswith("torch.nn.modules.") for one in globals_of(content)):
            return f"holds a whole module, {_WHOLE_MODULE}"
    except Exception:  # as of any damaged file
        return _DAMAGED
    return "is damaged, was cut off, or holds more than can be read safely"


def _arrays(content: bytes, name: str) -> dict[str, Tensor]:
    try:
        arrays = load_npz(content)
    except ValueError as error:
        raise InputError(_FIELD, name, f"is an npz that is damaged or holds Python objects: {error}") from error
    return {
        key: torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(array.shape))
        for key, array in arrays.items()
        if array.dtype.kind in "fiub"
    }


def _tensors(found: object) -> dict[str, Tensor]:
    if not isinstance(found, Mapping):
        return {}
    return {key: value.detach() for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _usual(loaded: object, above: str = "", deep: int = 0) -> FoundState | None:
    """The weights: of a usual entry, else the tensors that are here, else of an average, else of the only entry."""
    if not isinstance(loaded, Mapping) or deep > _DEEPEST:
        return None
    within = {
        key: found
        for key, value in loaded.items()
        if isinstance(key, str) and (found := _usual(value, f"{above}{key}.", deep + 1)) is not None
    }
    weights = [key for key in _ENTRIES if key in within]
    averages = [key for key in _AVERAGES if key in within]
    own = _tensors(loaded)
    if weights:
        return _one_of(within, weights + averages)
    if any(tensor.ndim > 0 for tensor in own.values()):
        return FoundState(own, above.rstrip("."))
    if averages:
        return _one_of(within, averages)
    rest = [key for key in within if not re.search("optim|sched|scaler|rng|loss|criterion|metric|callback", key)]
    return within[rest[0]] if len(rest) == 1 else None


def _one_of(within: Mapping[str, FoundState], keys: Sequence[str]) -> FoundState:
    first, *others = keys
    found = within[first]
    return FoundState(found.state, found.entry, (*found.others, *(within[key].entry for key in others)))


def _part(loaded: object, part: str, name: str) -> dict[str, Tensor]:
    """The entry of that name, or the tensors below that prefix."""
    for entry, found in _entries(loaded):
        if entry == part and (inner := _usual(found)) is not None:
            return inner.state
    usual = _usual(loaded)
    prefix = f"{part.rstrip('.')}."
    state = {} if usual is None else usual.state
    below = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    if not below:
        _refuse(name, f"holds nothing of the name {part!r}, but {_described(loaded)}")
    return below


def _entries(loaded: object, above: str = "", deep: int = 0) -> Iterator[tuple[str, object]]:
    if isinstance(loaded, Mapping) and deep <= _DEEPEST:
        for key, value in loaded.items():
            if isinstance(key, str):
                yield above + key, value
                yield from _entries(value, f"{above}{key}.", deep + 1)


def _check_dense(state: Mapping[str, Tensor], name: str) -> None:
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            _refuse(name, f"holds {_short(key)} quantized, sparse or without its values, and plain tensors are read")


def _described(found: object, deep: int = 0) -> str:
    """What was found instead, with the keys that might tell the user what to do."""
    if isinstance(found, Inert):
        return f"an object of class {_short(found.kind)}"
    if isinstance(found, Mapping):
        if modules := [key for key, value in found.items() if isinstance(value, Inert) and value.is_module]:
            return f"a whole module under {_short(modules[0])} (its keys are {_keys(found)}): save its state_dict()"
        return f"a dict with the keys {_keys(found)}" if found else "an empty dict"
    if isinstance(found, list | tuple):
        some = "; ".join(_described(one, deep + 1) for one in found[:3]) if deep <= _DEEPEST else ""
        return f"a {type(found).__name__} of {len(found)}" + (f": {some}" if some else "")
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    return "nothing" if found is None else f"one value of type {type(found).__name__}"


def _keys(found: Mapping[Any, Any]) -> str:
    more = len(found) - _SHOWN
    return ", ".join(_short(str(key)) for key in list(found)[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."


def _refuse(name: str, allowed: str) -> NoReturn:
    raise InputError(_FIELD, name, allowed)
