"""Weights from files, of a classifier or of the network inside, loaded whole or not at all."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from distsens.errors import InputError
from distsens.models.pixels import PixelModel

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth")

_FIELD = "model.weights"
_CONTAINERS = ("state_dict", "model_state_dict", "model")
_DATA_PARALLEL = "module."
_NETWORK = "network."
_SHOWN = 3


def load_initial_weights(model: PixelModel, path: Path, sha256: str | None = None) -> None:
    """Load a file's weights; every one must be there and fit.

    Parameters
    ----------
    model : takes the weights.
    path : a ``.safetensors`` file, or a ``.pt`` or ``.pth`` file of ``torch.save`` from which tensors alone are read
        (``weights_only=True``, so that no code of the file runs). It holds the state dict of a `PixelModel`, as this
        project's checkpoints do, or of the network inside, perhaps as the entry ``state_dict``, ``model_state_dict``
        or ``model`` of a dict, and perhaps with the prefix ``module.`` of DataParallel.
    sha256 : digest that the file must have, see :func:`weights_digest`.

    Raises
    ------
    InputError
        If the file cannot be read or has another digest, or the weights are another network's, for another number of
        classes or for images that were normalised differently.
    """
    content = read_weights(path)
    if sha256 is not None and sha256 != (found := hashlib.sha256(content).hexdigest()):
        raise InputError("model.weights_sha256", sha256, f"{path} is another file: its SHA-256 is {found}")
    load_state(model, state_of(content, str(path)), str(path))


def weights_digest(path: Path) -> str:
    """SHA-256 of a weights file."""
    return hashlib.sha256(read_weights(path)).hexdigest()


def read_weights(path: Path) -> bytes:
    """Content of a weights file; `InputError` if it cannot be read, or has none of the ``WEIGHTS_SUFFIXES``."""
    if path.suffix not in WEIGHTS_SUFFIXES:
        raise InputError(_FIELD, str(path), f"must be a {', '.join(WEIGHTS_SUFFIXES)} file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(_FIELD, str(path), f"cannot be read ({error.strerror})") from error


def state_of(content: bytes, name: str) -> dict[str, Tensor]:
    """The named tensors in a file's content, of the format that its name's suffix says; no code of it runs.

    ``module.``, which DataParallel puts before all names, is taken away.
    """
    loaded: Any
    try:
        if name.endswith(".safetensors"):
            loaded = safetensors.torch.load(content)
        else:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged file makes its reader raise almost anything.
        reason = str(error).strip().partition("\n")[0]
        raise InputError(_FIELD, name, f"holds no tensors that can be read safely ({reason})") from error
    if isinstance(loaded, Mapping):
        inner = next((loaded[entry] for entry in _CONTAINERS if isinstance(loaded.get(entry), Mapping)), loaded)
        if inner and all(isinstance(value, Tensor) for value in inner.values()):
            return _without_prefix(inner, _DATA_PARALLEL)
    raise InputError(_FIELD, name, "holds no state dict: a dict of names and tensors")


def state_to_bytes(state: Mapping[str, Tensor]) -> bytes:
    """The named tensors as a safetensors file."""
    # Clones, because safetensors refuses tensors that share memory, as tied weights do.
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})


def normalisation_of(state: Mapping[str, Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation in the state of a whole `PixelModel`; None for a network alone, which has none."""
    if not _is_whole(state):
        return None
    return tuple(state["mean"].flatten().tolist()), tuple(state["std"].flatten().tolist())


def load_state(model: PixelModel, state: Mapping[str, Tensor], source: str) -> None:
    """Load the state of a `PixelModel`, or of the network inside; see :func:`load_initial_weights`.

    ``source`` is how messages call the state.
    """
    own = model.network.state_dict()
    if _is_whole(state):
        for field in ("mean", "std"):
            _check_normalisation(f"model.{field}", getattr(model, field), state[field])
        inner: Mapping[str, Tensor] = {name: state[name] for name in state if name not in ("mean", "std")}
        state = _without_prefix(_without_prefix(inner, _NETWORK), _DATA_PARALLEL)
    _check_shapes(source, state, own)
    missing, unexpected = model.network.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise InputError(_FIELD, source, f"of another network: {_differences(missing, unexpected)}")


def _is_whole(state: Mapping[str, Tensor]) -> bool:
    return "mean" in state and "std" in state and any(name.startswith(_NETWORK) for name in state)


def _without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same without a prefix that all names have."""
    if all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def _check_normalisation(field: str, own: Tensor, stored: Tensor) -> None:
    mine, trained = ([float(f"{number:.6g}") for number in tensor.flatten().tolist()] for tensor in (own, stored))
    channels = max(len(mine), len(trained))
    one_each = [numbers * channels if len(numbers) == 1 else numbers for numbers in (mine, trained)]
    if one_each[0] != one_each[1]:
        raise InputError(field, mine, f"the weights were trained with {trained}")


def _check_shapes(source: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    unlike = {
        name: (tuple(state[name].shape), tuple(own[name].shape))
        for name in own
        if name in state and state[name].shape != own[name].shape
    }
    if not unlike:
        return
    shapes = _shortened([f"{name} {stored}, here {needed}" for name, (stored, needed) in unlike.items()], "; ")
    if state.keys() == own.keys():
        match list({_changed(0, *pair) for pair in unlike.values()}):
            case [(classes, needed_classes)]:  # the last layer alone differs
                allowed = f"for {classes} classes, where {needed_classes} are needed ({shapes})"
                raise InputError(_FIELD, source, allowed)
        if all(_changed(1, *pair) for pair in unlike.values()):  # what the first layers take differs
            raise InputError(_FIELD, source, f"for images of another shape ({shapes})")
        raise InputError(
            _FIELD, source, f"of another network, or for other images and classes: other shapes ({shapes})"
        )
    names = _differences([name for name in own if name not in state], [name for name in state if name not in own])
    raise InputError(_FIELD, source, f"of another network: other shapes ({shapes}), {names}")


def _changed(axis: int, stored: tuple[int, ...], needed: tuple[int, ...]) -> tuple[int, int] | None:
    """The two lengths along the only axis in which two shapes differ."""
    if len(stored) != len(needed) or len(stored) <= axis:
        return None
    alike = stored[:axis] == needed[:axis] and stored[axis + 1 :] == needed[axis + 1 :]
    return (stored[axis], needed[axis]) if alike else None


def _differences(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    return f"{_counted(missing)} missing, {_counted(sorted(unexpected))} unexpected"


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} weights ({_shortened(names, ', ')})" if names else "0 weights"


def _shortened(items: Sequence[str], separator: str) -> str:
    more = len(items) - _SHOWN
    return separator.join(items[:_SHOWN]) + (f"{separator}{more} more" if more > 0 else "")
