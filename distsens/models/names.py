"""The names that weights have in a file and in a network: what wrappers put before and between them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

# Of DataParallel, torch.compile, FSDP, activation checkpointing and Lightning's Fabric, wherever in a network they are.
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
# What other tools leave in a state: the counts of thop.
_COUNTS = ("total_ops", "total_params")
# PyTorch itself sets it to 0 where older versions did not store it.
_OPTIONAL = "num_batches_tracked"


@dataclass(frozen=True)
class Named:
    """Tensors by the network's own names, and ``aside`` by the file's those that are none of the network's.

    rivals : prefixes under which the whole network was found more than once.
    """

    state: dict[str, Tensor]
    aside: dict[str, Tensor]
    rivals: tuple[str, ...] = ()


def plain(name: str) -> str:
    """A name without the parts that wrappers put anywhere into it."""
    return _WRAPPERS.sub("", name)


def as_named_by(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Named:
    """Find a network's tensors, whatever wrappers did to their names.

    A prefix is whatever stands before the network's own names in the file, in any nesting and of any word; the one
    that leads to most of them is taken, then to most of their shapes, and none where it leads to as many. A network
    that a factory has wrapped itself is found without its wrapper as well.

    Parameters
    ----------
    own : the network's state.
    state : of the file.
    """
    needed, stored = _distinct(own), _distinct(state)

    def look(names: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        return _under_a_prefix(names, stored, lambda mine, theirs: own[mine].shape == state[theirs].shape)

    best = look(needed)
    shared = _shared(needed)
    if shared and not _covers(best[1], needed):
        inner = look({name.removeprefix(shared): full for name, full in needed.items()})
        best = max(best, inner, key=lambda found: len(found[1]))
    prefixes, matched = best
    taken = set(matched.values())
    found = {mine: state[theirs] for mine, theirs in matched.items()}
    aside = {name: tensor for name, tensor in state.items() if name not in taken and not name.endswith(_COUNTS)}
    if len(prefixes) == 1 or not _covers(matched, needed):
        prefix = prefixes[0] if prefixes else ""
        aside = {_after(name, prefix): tensor for name, tensor in aside.items()}
        return Named(found, aside)
    return Named(found, aside, tuple(prefixes))


def _under_a_prefix(
    needed: Mapping[str, str], stored: Mapping[str, str], alike: Callable[[str, str], bool]
) -> tuple[list[str], dict[str, str]]:
    """The prefixes that lead to most of the needed names, and the network's names to the file's under the first."""
    names: Counter[str] = Counter()
    shapes: Counter[str] = Counter()
    for name, full in stored.items():
        for cut in _cuts(name):
            if name[cut:] in needed and not name.endswith(_OPTIONAL):
                names[name[:cut]] += 1
                shapes[name[:cut]] += alike(needed[name[cut:]], full)
    if not names:
        return [], {}
    most = max((count, shapes[prefix]) for prefix, count in names.items())
    prefixes = sorted((one for one in names if (names[one], shapes[one]) == most), key=lambda one: (len(one), one))
    if "" in prefixes:
        prefixes = [""]
    first = prefixes[0]
    return prefixes, {full: stored[first + name] for name, full in needed.items() if first + name in stored}


def _covers(matched: Mapping[str, str], needed: Mapping[str, str]) -> bool:
    return all(full in matched or full.endswith(_OPTIONAL) for full in needed.values())


def _cuts(name: str) -> Iterable[int]:
    yield 0
    yield from (found.end() for found in re.finditer(r"\.", name))


def _distinct(names: Iterable[str]) -> dict[str, str]:
    """Plain names to the names themselves; without a change where two would become one."""
    names = list(names)
    found = {plain(name): name for name in names}
    return found if len(found) == len(names) else {name: name for name in names}


def _shared(names: Collection[str]) -> str:
    """The parts, each with its dot, that all names begin with."""
    first, last = min(names, default=""), max(names, default="")
    common = 0
    while common < min(len(first), len(last)) and first[common] == last[common]:
        common += 1
    return first[: first.rfind(".", 0, common) + 1]


def _after(name: str, prefix: str) -> str:
    return plain(name).removeprefix(prefix) if plain(name).startswith(prefix) else name
