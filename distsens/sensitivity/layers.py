"""Which layers are meant: by name, by glob, or those that one forward finds."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from distsens.errors import InputError
from distsens.networks import program, unwrapped
from distsens.sensitivity.survey import WEIGHTED, known_survey, survey

AUTO = "auto"
NOT_CALLED = "the layer was not called in the forward pass; name one that is"


def match_layers(
    model: nn.Module, patterns: str | Sequence[str], images: Tensor | None = None, *, readable: bool = False
) -> tuple[str, ...]:
    """Names of the layers that the patterns mean, each once.

    Parameters
    ----------
    patterns : names as in ``model.named_modules()``, globs over them, or ``"auto"``: the convolutions and linear
        layers that one forward calls exactly once, whose output does not become the logits (see :func:`survey`).
    images : (N, ...), needed for ``"auto"``, of which only shape and type count; N may be 1.
    readable : let ``"auto"`` leave out layers whose output cannot be read image by image, and be none.

    Returns
    -------
    In the order of the forward where ``"auto"`` asked for one, else in that of the model.

    Raises
    ------
    InputError : a pattern matches nothing, or ``"auto"`` a layer that cannot be read.
    """
    network = unwrapped(model)
    if kind := program(network):
        raise InputError("model", kind, "it calls no layers that could be read; give the network itself")
    names = [name for name, _ in network.named_modules() if name]
    known = set(names)
    chosen: set[str] = set()
    order: Sequence[str] = names
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if pattern == AUTO:
            found, order = _auto(network, images, names, readable=readable)
            if readable and not found:
                continue
        else:  # a whole name needs no search: every training step comes here with them
            found = {pattern} if pattern in known else {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            weighted = [name for name in names if isinstance(network.get_submodule(name), WEIGHTED)]
            examples = ", ".join((weighted or names)[:8])
            raise InputError(
                "layers", pattern, f'it matches no layer; allowed are "auto", names and globs, e.g. {examples}'
            )
        chosen |= found
    return tuple(name for name in order if name in chosen)


def unreadable_layers(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """Those that ``"auto"`` means, but that cannot be read image by image."""
    found = known_survey(unwrapped(model), images, ())
    return tuple(name for name in found.hidden if name in found.faults)


def _auto(
    network: nn.Module, images: Tensor | None, names: Sequence[str], *, readable: bool
) -> tuple[set[str], Sequence[str]]:
    """What ``"auto"`` means, and all names in the order of the forward."""
    if images is None:
        raise InputError("layers", AUTO, "a forward decides which layers it means: give images, or names")
    found = survey(network, images)
    unreadable = [name for name in found.hidden if name in found.faults]
    if unreadable and not readable:
        name = unreadable[0]
        raise InputError("layers", name, f'{found.faults[name]}; name the layers instead of "auto"')
    return set(found.hidden) - set(unreadable), list(dict.fromkeys([*found.calls, *names]))
