"""How a folder of images is laid out: where its splits are, and in each of them the folders of the classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distsens.data.files import SUFFIXES
from distsens.data.tree import Tree
from distsens.errors import InputError

Split = Literal["train", "validation", "test"]

_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_KINDS: dict[str, Split] = {name: split for split, names in _NAMES.items() for name in names}
_CONTAINERS = ("data", "dataset", "images", "imgs")
_IGNORED_FOLDERS = ("__macosx", "@eadir")  # what archives and file servers leave
_IGNORED_FILES = ("thumbs.db", "desktop.ini")
_NAMED = 5


@dataclass(frozen=True)
class Layout:
    """Where the class folders are.

    splits : by split, in the order of ``Split``, the folder that holds its class folders; empty where there are none.
    unsplit : the folder that holds the class folders where there are no splits.
    classes : their names, sorted.
    notices : what lies beside and is left out.
    """

    splits: dict[Split, str]
    unsplit: str | None
    classes: tuple[str, ...]
    notices: tuple[str, ...]


def find_layout(tree: Tree) -> Layout:
    """Find splits by their usual names, in any case, and class folders in them, or class folders alone.

    Splits are ``train`` or ``training``; ``val``, ``valid``, ``validation`` or ``dev``; ``test`` or ``testing``. They,
    or the class folders, may lie in the only folder of the root (and so on), or in ``data`` or ``images`` beside
    folders without images. What is called like a split and holds images, but no folders, is a class among others.

    Raises
    ------
    InputError
        If there are no class folders, only one, or folders that may be splits as well as classes.
    """
    path, notices = ".", list[str]()
    while True:
        folders = _folders(tree, path)
        notices += _loose_images(tree, path)
        splits = [name for name in folders if _kind(name) is not None and _folders(tree, _within(path, name))]
        if splits:
            return _of_splits(tree, path, splits, [name for name in folders if name not in splits], notices)
        inner = _container(tree, path, folders, notices)
        if inner is None:
            break
        path = inner
    if not folders:
        raise InputError("data.root", tree.url, "must be a folder of class folders")
    _refuse_odd_names(tree, path, folders)
    notices += _check_classes(tree, path, folders)
    return Layout({}, path, folders, tuple(notices))


def is_image_name(name: str) -> bool:
    """Whether a file of this name, without its folders, is read."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def is_passed_over(name: str) -> bool:
    """Whether a file that is no image is one that computers leave everywhere."""
    return name.startswith(".") or name.lower() in _IGNORED_FILES


def in_words(names: Sequence[str]) -> str:
    """The first of the names, and whether there are more."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _of_splits(tree: Tree, path: str, splits: Sequence[str], others: Sequence[str], notices: list[str]) -> Layout:
    found: dict[Split, str] = {}
    for split in _NAMES:
        of_it = [name for name in splits if _kind(name) == split]
        if len(of_it) > 1:
            raise InputError("data.root", tree.url, f"holds {' and '.join(of_it)}, which mean the same: leave one")
        for name in of_it:
            found[split] = _inside(tree, _within(path, name), notices)
    for name in others:
        if _kind(name) is None and any(is_image_name(_base(file)) for file in tree.files(_within(path, name))):
            allowed = f"holds {name} beside {' and '.join(splits)}: call it train, val or test, or move it elsewhere"
            raise InputError("data.root", tree.url, allowed)
        what = "no class folders" if _kind(name) else "no images"
        notices.append(f"{_within(path, name)} holds {what} and is left out")
    first, *further = found.values()
    classes = _folders(tree, first)
    for folder in further:
        if odd := sorted(set(classes) ^ set(_folders(tree, folder))):
            raise InputError("data.root", tree.url, f"{first} and {folder} must have the same classes, not {odd[0]!r}")
    for folder in found.values():
        notices += _check_classes(tree, folder, classes)
    return Layout(found, None, classes, tuple(notices))


def _inside(tree: Tree, path: str, notices: list[str]) -> str:
    """The folder of class folders in a split, which may lie in a folder of its own there."""
    notices += _loose_images(tree, path)
    inner = _container(tree, path, _folders(tree, path), notices)
    return path if inner is None else _inside(tree, inner, notices)


def _container(tree: Tree, path: str, folders: Sequence[str], notices: list[str]) -> str | None:
    """The folder in which all the others are, if this one only wraps it."""

    def wraps(name: str) -> bool:
        inner = _within(path, name)
        return bool(_folders(tree, inner)) and not any(is_image_name(_base(file)) for file in tree.beside(inner))

    if len(folders) == 1:
        return _within(path, folders[0]) if wraps(folders[0]) else None
    for name in folders:
        if name.casefold() in _CONTAINERS and wraps(name):
            for other in folders:
                if other == name:
                    continue
                if any(is_image_name(_base(file)) for file in tree.files(_within(path, other))):
                    allowed = f"holds images in the folders of {name} and in {other}: name one of them"
                    raise InputError("data.root", tree.url, allowed)
                notices.append(f"{_within(path, other)} holds no images and is left out")
            return _within(path, name)
    return None


def _refuse_odd_names(tree: Tree, path: str, folders: Sequence[str]) -> None:
    """Folders that are called ``test``, or ``seg_train`` and ``seg_test``, or are split themselves, are no classes."""
    if all(_kind(name) for name in folders):
        allowed = f"{' and '.join(folders)} must hold a folder for each class, with the images of that class in it"
        raise InputError("data.root", tree.url, allowed)
    holding = {name: _folders(tree, _within(path, name)) for name in folders}
    words = {name: set(re.split(r"[^a-z]+", name.casefold())) & set(_KINDS) for name, inner in holding.items() if inner}
    likely = [name for name, some in words.items() if some]
    if len({_KINDS[word] for name in likely for word in words[name]}) > 1:
        allowed = f"{' and '.join(likely)} look like splits: call them {', '.join(_NAMES)}, or give their root"
        raise InputError("data.root", tree.url, allowed)
    split = [name for name, inner in holding.items() if inner and all(_kind(one) for one in inner)]
    if split and len(split) == sum(map(bool, holding.values())):
        inner = " and ".join(holding[split[0]])
        allowed = f"class {split[0]} holds {inner}: splits must hold the classes, not lie in them"
        raise InputError("data.root", tree.url, allowed)


def _check_classes(tree: Tree, folder: str, classes: Sequence[str]) -> list[str]:
    if len(classes) < 2:
        allowed = f"must hold a folder for each of two classes or more; {folder} holds {in_words(classes) or 'none'}"
        raise InputError("data.root", tree.url, allowed)
    nested = [f"{name}/{inner}" for name in classes for inner in _folders(tree, _within(folder, name))]
    return [f"folders inside class folders belong to their class: {in_words(nested)}"] if nested else []


def _loose_images(tree: Tree, path: str) -> list[str]:
    loose = [file for file in tree.beside(path) if is_image_name(_base(file))]
    return [f"{len(loose)} images lie outside of class folders and are left out: {in_words(loose)}"] if loose else []


def _folders(tree: Tree, path: str) -> tuple[str, ...]:
    return tuple(name for name in tree.folders(path) if name.casefold() not in _IGNORED_FOLDERS)


def _kind(name: str) -> Split | None:
    return _KINDS.get(name.casefold())


def _within(path: str, name: str) -> str:
    return name if path == "." else f"{path}/{name}"


def _base(name: str) -> str:
    return name.rpartition("/")[2]
