"""Whose code a factory is: what a file of a stranger names is not imported on its word alone."""

from __future__ import annotations

import importlib.util
import os
import re
import site
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from distsens.errors import InputError

_FACTORY = re.compile(r"(?:.+@)?(?P<factory>[A-Za-z_][\w.]*:[A-Za-z_]\w*)", re.DOTALL)
_KNOWN = ("distsens", "torchvision")


def check_named(where: str, document: object, given: Collection[str] = ()) -> None:
    """Refuse a factory that a stored document names, unless it is installed or the user has named it, too.

    Nothing is imported for it.

    Parameters
    ----------
    where : what holds the document, for the message.
    document : a name, or fields of which any may hold one.
    given : factories that the user has named himself.

    Raises
    ------
    InputError
    """
    for name in strangers_in(document):
        if name not in given:
            raise InputError(
                "factory",
                " ".join(given) or None,
                f"{where} names {name}, which is not installed: it is imported from the current folder or PYTHONPATH "
                f"where you name it, too, by --factory {name}",
            )


def words_for(document: object) -> list[str]:
    """What a command has to say for what it resumes, see :func:`check_named`."""
    names = list(dict.fromkeys(strangers_in(document)))
    return ["--factory", *names] if names else []


def strangers_in(document: object) -> Iterator[str]:
    """The factories in a document that are not installed."""
    return (name for name in factories_in(document) if not is_installed(name))


def factories_in(document: object) -> Iterator[str]:
    """Each ``package.module:factory`` in a document, also behind the ``@`` of an address."""
    if isinstance(document, dict):
        document = list(document.values())
    if isinstance(document, list | tuple):
        for one in document:
            yield from factories_in(one)
    elif isinstance(document, str) and (found := _FACTORY.fullmatch(document)):
        yield found["factory"]


def is_installed(name: str) -> bool:
    """Whether the module of a factory belongs to this Python, or to a package that was installed into it.

    What is found by way of the current folder or PYTHONPATH does not. A module that is nowhere is no stranger's.
    """
    package = name.partition(":")[0].partition(".")[0]
    if package in _KNOWN:
        return True
    try:
        with current_folder_importable():
            found = importlib.util.find_spec(package)
    except ValueError:  # of a program that runs, and was not imported
        return True
    if found is None or (not found.has_location and found.submodule_search_locations is None):
        return True
    places = list(found.submodule_search_locations or ()) or [str(found.origin)]
    # Where it was found counts, and not where a link there leads.
    return not {os.path.realpath(os.path.dirname(place)) for place in places} & _not_installed()


def _not_installed() -> set[str]:
    named = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    return {*map(os.path.realpath, named)} - {*map(os.path.realpath, installed)}


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """As with ``python -m``, also where an entry point such as a Ray worker's left the current folder out."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
