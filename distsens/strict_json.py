"""JSON as it is read everywhere: UTF-8, no key twice in one object, finite numbers, and of the kind that is wanted."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

M = TypeVar("M", bound="Document")
_LONGEST = 80


class Document(BaseModel):
    """What a JSON file of ours holds: nothing is converted, and what other versions add is passed over."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


def load_json(content: bytes | str, *, finite: bool = True) -> Any:
    """The document in a file.

    Parameters
    ----------
    finite : refuse numbers that are NaN or infinite, which JSON does not have and Python writes all the same.

    Raises
    ------
    ValueError
        It is none; in one line.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        if not finite:
            return json.loads(text, object_pairs_hook=_once)
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refuse_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error}") from None


def load_json_file(path: Path) -> Any:
    """The document in a file; raises as :func:`load_json`, and `OSError` where it cannot be read."""
    if path.exists() and not path.is_file():  # a pipe would keep its reader waiting
        raise ValueError("it is no file")
    return load_json(path.read_bytes())


def load_as(kind: type[M], content: bytes | str | Any) -> M:
    """The document in a file, or one that was read before, of the kind that is wanted; `ValueError` if it is another.

    Every file of ours has one such kind, which says what may be in it.
    """
    document = load_json(content) if isinstance(content, bytes | str) else content
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong with a document, in one line."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = _name(fault["loc"])
    what = fault["msg"].partition(" or instance of ")[0].replace("Input", "it", 1)
    return f"{where}: {what}" if where else what


def _name(location: Sequence[str | int]) -> str:
    return ".".join(map(str, location))[:_LONGEST]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"{twice[:_LONGEST]!r} is there twice")
    return found


def _refuse_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:_LONGEST]} is too large a number")
    return value
