"""The command line of the jobs: a recipe, and any field of it on top."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import yaml

from distsens.errors import InputError, Interruption, UnavailableError, printable
from distsens.experiment import branch, merge
from distsens.strict_yaml import RefusedYamlError, load_yaml
from distsens.unread import unread
from distsens.words import fault_of_path

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

WRONG_INPUT = 2
"""Exit code of wrong input."""

_FAILED = 1
_INTERRUPTED = 130


def parse_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn ``--threat.eps 8/255 --dry-run --stabilize.layers a b`` into nested fields.

    A flag without a value is true, ``--no-...`` (also ``--data.no-download``) false, several values are a list, and
    dashes in names may stand for underscores. Values are read as in a recipe. Where a flag is given again, as on top
    of a script's, the last one counts.
    """
    found: dict[str, Any] = {}
    position = 0
    while position < len(arguments):
        flag, equals, value = arguments[position].partition("=")
        position += 1
        if not flag.startswith("--") or flag == "--":
            raise InputError("command line", flag, "a value without a field; write --field value")
        values = [value] if equals else []
        while not equals and position < len(arguments) and not arguments[position].startswith("--"):
            values.append(arguments[position])
            position += 1
        section, dot, name = flag.removeprefix("--").replace("-", "_").rpartition(".")
        parsed: Any = [_value(one) for one in values] if len(values) > 1 else _value(values[0]) if values else True
        if not values and name.startswith("no_"):
            name, parsed = name.removeprefix("no_"), False
        found = _beside(found, branch(f"{section}{dot}{name}", parsed))
    return found


def _beside(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`merge`, but a ``model`` beside fields of that section is its address: ``--model A --model.mean 0``."""
    both = [given.get("model") for given in (fields, changes)]
    if sum(isinstance(one, Mapping) for one in both) == 1 and None not in both:
        before, after = (one if isinstance(one, Mapping) else {"address": one} for one in both)
        return {**merge(fields, changes), "model": merge(before, after)}
    return merge(fields, changes)


def _value(text: str) -> Any:
    try:
        value = load_yaml(text)
    except RefusedYamlError as error:
        raise InputError("command line", text, str(error)) from None
    except yaml.YAMLError:
        return text
    # Of plain text YAML would take "#2" in "net #2.pt" for a comment, and "a: b" for fields.
    plain = isinstance(value, str | dict) and not text.lstrip().startswith(("'", '"', "{", "|", ">", "!", "&"))
    return text if plain else value


def as_lists(fields: Mapping[str, Any], shape: Mapping[str, Any]) -> dict[str, Any]:
    """Wrap a single value in a list where ``shape`` (the defaults) holds one: ``--data.augment crop``."""
    wrapped: dict[str, Any] = {}
    for key, value in fields.items():
        below = shape.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            wrapped[key] = as_lists(value, below)
        else:
            wrapped[key] = [value] if isinstance(below, list) and not isinstance(value, list) else value
    return wrapped


def take_options(kind: type[T], flags: dict[str, Any]) -> T:
    """Take a job's own options out of ``flags``: the fields of a dataclass.

    A bool takes no value, a tuple one or several, and everything else one. A section of an option's name, as ``model``
    beside ``model.mean``, is no option and stays.
    """
    names = [field.name for field in fields(kind)]
    given = {name: flags.pop(name) for name in names if not isinstance(flags.get(name, {}), Mapping)}
    for name, value in given.items():
        default = getattr(kind, name)
        if isinstance(default, tuple):
            given[name] = tuple(value) if isinstance(value, list) else (value,)
            if not all(isinstance(one, str) for one in given[name]):
                raise InputError(name, value, "it takes a value, or several")
            for one in given[name]:
                _check_word(name, one)
            continue
        wanted = bool if isinstance(default, bool) else str
        if not isinstance(value, wanted):
            raise InputError(name, value, "it takes no value" if wanted is bool else "it takes one value")
        if isinstance(value, str):
            _check_word(name, value)
    return kind(**given)


def _check_word(field: str, word: str) -> None:
    """Refuse what can be neither a name nor a path: an option is one or the other."""
    if fault := fault_of_path(word):
        raise InputError(field, word, fault)


def check_output(field: str, path: str) -> None:
    """Refuse, before anything is started, the path of a file that could not be written at the end."""
    _check_word(field, path)
    target = Path(path).absolute()
    if os.path.isdir(target):
        raise InputError(field, path, "it is a folder; name a file")
    if not os.path.isdir(target.parent):
        raise InputError(field, path, "its folder does not exist")
    existed = os.path.exists(target)
    try:
        # Nothing is waited for: a named pipe that nobody reads cannot be written.
        os.close(os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666))
        if not existed:
            target.unlink()
    except OSError as error:
        raise InputError(field, path, f"it cannot be written: {error.strerror}") from None


def take_addresses(flags: dict[str, Any]) -> list[str]:
    """Take the addresses out of ``flags``, where ``model`` may also be the section of that name."""
    section = flags.get("model")
    given = section.pop("address", None) if isinstance(section, dict) else flags.pop("model", None)
    addresses = given if isinstance(given, list) else [] if given is None else [given]
    for address in addresses:
        if not isinstance(address, str):
            raise InputError("model", address, "it takes an address, or several")
        _check_word("model", address)
    return addresses


def write_output(field: str, path: str | None, document: object) -> int:
    """Write what the job has found as JSON, if that is wanted; 1, and a line, if it cannot be written, else 0."""
    if path is None:
        return 0
    try:
        Path(path).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        print_error(f"{field}: {path} cannot be written: {error.strerror or error}")
        return 1
    return 0


def print_error(line: str) -> None:
    """Print one line to the standard error; what steers a terminal, as a file's name of others may, is escaped."""
    print(printable(line), file=sys.stderr)  # noqa: T201


def print_end(status: str, message: str) -> None:
    """Print how a job ended, if not well: what an interruption says begins with the word itself."""
    print_error(message if message.startswith(status) else f"{status}: {message}")


def show_help(description: str, *parts: object) -> NoReturn:
    """Print the flags of all parts (a job's options, an experiment), with defaults and one line on each; exit 0."""
    import tyro

    description = re.sub(r"\n(?=python )", "\n\n", description)  # lines of one paragraph would be run together
    members = [(f"part{n}", Annotated[type(part), tyro.conf.arg(name="")]) for n, part in enumerate(parts)]
    command = make_dataclass("command", members)
    tyro.cli(command, default=command(*parts), description=description, args=["--help"])
    raise AssertionError("the help page exits")


def run_job(job: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a job's main function on the command line and exit: wrong input is one line and exit code 2.

    Nobody need read what it says: its work goes on when the reader has gone, as with ``| head``, or the terminal, and
    where that lacks letters of a name.
    """
    output, errors = unread(sys.stdout), unread(sys.stderr)
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            code = _run(job)
        finally:
            output.flush()
            errors.flush()
    sys.exit(code)


def _run(job: Callable[[Sequence[str]], int]) -> int:
    try:
        code = job(sys.argv[1:])
    except InputError as error:
        print_error(f"error: {error}")
        code = WRONG_INPUT
    except UnavailableError as error:
        print_error(f"failed: {error}")
        code = _FAILED
    except KeyboardInterrupt as error:
        print_error("interrupted before the run began")
        code = error.exit_code if isinstance(error, Interruption) else _INTERRUPTED
    return code
