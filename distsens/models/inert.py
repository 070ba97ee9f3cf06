"""Files of ``torch.save`` read by PyTorch's own safe reader, with stand-ins for all that it does not know.

Checkpoints hold more than tensors: settings, numbers of NumPy, callbacks, functions. The safe reader
(``weights_only=True``) refuses a file that names any class or function but those of tensors. Here every other name
leads to an inert stand-in, which keeps what it is given and does nothing, so that nothing of the file's choice is
imported or called. Names of modules that the safe reader blocks (``os``, ``sys``) stay refused.
"""

from __future__ import annotations

import _compat_pickle
import io
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch.serialization import safe_globals

_MARK = object()
_CALLED = f"{__name__}.Inert"  # what may be called is what has a name
_PICKLES_BEFORE = 3  # of the format before 1.6: a number, a version and the machine


class Inert:
    """What stands for an object of a class, or the result of a function, of that name (``kind``)."""

    kind = ""
    held: object = None

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Take any arguments."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.held = state

    @property
    def is_module(self) -> bool:
        """Whether it stands for a ``torch.nn.Module``."""
        return isinstance(self.held, dict) and {"_modules", "_parameters"} <= self.held.keys()


def load_inert(content: bytes) -> Any:
    """What a file of ``torch.save`` holds, on the CPU; raises almost anything if it is damaged."""
    shapes = _shapes(content)
    stands: list[Any] = [(_stand_in(name, shape), name) for name, shape in shapes.items()]
    stands.append((Inert, _CALLED))
    with safe_globals(stands), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another protocol than its own
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def globals_of(content: bytes) -> tuple[str, ...]:
    """The classes and functions that a file of ``torch.save`` names."""
    return tuple(_shapes(content))


def protocol_of(content: bytes) -> int:
    """The version of pickle that a file of ``torch.save`` is written in; the safe reader knows 2, the usual one."""
    return next((argument for code, argument, _ in _operations(content) if code.name == "PROTO"), 0)


def _stand_in(name: str, shape: str) -> Any:
    """A class for one name; what is filled as a dict or a list is one, as the safe reader fills no others."""
    if name == "builtins.getattr":  # of a method, which may be called
        return lambda *_: Inert
    if shape == "dict":
        return type("InertDict", (), {"__new__": lambda *_, **__: OrderedDict()})
    if shape == "list":
        return type("InertList", (), {"__new__": lambda *_, **__: []})
    return type("InertObject", (Inert,), {"kind": name})


def _shapes(content: bytes) -> dict[str, str]:
    """How objects of each name in a file's pickle are filled: as a ``dict``, as a ``list``, or "" as neither.

    The pickle is followed as ``pickletools.dis`` does, with the names of classes in place of objects.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    shapes: dict[str, str] = {}
    for code, argument, _ in _operations(content):
        match code.name:
            case "GLOBAL":
                shapes.setdefault(name := _current(*argument.split(" ", 1)), "")
                stack.append(name)
            case "NEWOBJ" | "REDUCE":
                del stack[-1:]  # the arguments; what is made is called as what makes it
            case "SETITEM" | "SETITEMS" | "APPEND" | "APPENDS":
                many = code.name.endswith("S")
                del stack[_mark(stack) if many else len(stack) - (2 if code.name == "SETITEM" else 1) :]
                if isinstance(stack[-1], str):
                    shapes[stack[-1]] = "dict" if code.name.startswith("SET") else "list"
            case "MARK":
                stack.append(_MARK)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case _:
                taken = [one.name for one in code.stack_before]
                if "mark" in taken:
                    del stack[_mark(stack) :]
                    taken = taken[: taken.index("mark")]
                if taken:
                    kept = stack[-len(taken)] if code.name == "BUILD" else None
                    del stack[-len(taken) :]
                else:
                    kept = None
                stack += [kept] * len(code.stack_after)
    return shapes


def _mark(stack: list[Any]) -> int:
    return len(stack) - 1 - stack[::-1].index(_MARK)


def _operations(content: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            name = next(one for one in archive.namelist() if re.fullmatch(r"([^/]+/)?data\.pkl", one))
            yield from pickletools.genops(archive.read(name))
        return
    stream = io.BytesIO(content)
    for _ in range(_PICKLES_BEFORE):
        for _ in pickletools.genops(stream):
            pass
    yield from pickletools.genops(stream)


def _current(module: str, name: str) -> str:
    """The name that Python 3 has for what Python 2 called otherwise, as the safe reader maps it."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[(module, name)]
    elif module in _compat_pickle.IMPORT_MAPPING:
        module = _compat_pickle.IMPORT_MAPPING[module]
    return f"{module}.{name}"
