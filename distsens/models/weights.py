"""Weights from files, of a classifier or of the network inside, loaded whole or not at all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
from torch import Tensor

from distsens.errors import InputError
from distsens.models.names import as_named_by, plain
from distsens.models.pixels import PixelModel
from distsens.models.torchvision_models import current_layout
from distsens.models.weights_file import read_weights, split_part, state_of

_FIELD = "model.weights"
_NETWORK = "network."
_NORMALISATION = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}
_CHANNELS = 4
# Of the training that left them, and not of its network: class weights of a loss, states of metrics.
_OF_TRAINING = re.compile(r"(\w+_)?(criterion|loss|losses|loss_fn|loss_func|metric|metrics|accuracy|acc)\.")
_SHOWN, _LONGEST = 3, 80


def load_initial_weights(model: PixelModel, path: Path, sha256: str | None = None) -> None:
    """Load a file's weights; every one must be there and fit.

    Parameters
    ----------
    model : takes the weights.
    path : a safetensors file, a file of ``torch.save`` or an npz, which its content tells whatever its name. Tensors
        alone are read, so that no code of the file runs. It holds the state dict of a `PixelModel`, as this project's
        checkpoints do, or of the network inside, perhaps as an entry such as ``state_dict``, ``model`` or ``ema`` of a
        dict with anything beside it (``FILE#ENTRY`` names one, weights come before averages of them), and perhaps with
        what wrappers put into names (``module.``, ``_orig_mod.``, ``model.``, in any nesting).
    sha256 : digest that the file must have, see :func:`weights_digest`.

    Raises
    ------
    InputError
        If the file cannot be read or has another digest, or the weights are another network's, for another number of
        classes or for images that were normalised differently.
    """
    file, part = split_part(str(path))
    content = read_weights(Path(file))
    if sha256 is not None and sha256 != (found := hashlib.sha256(content).hexdigest()):
        raise InputError("model.weights_sha256", sha256, f"{file} is another file: its SHA-256 is {found}")
    load_state(model, state_of(content, file, part), str(path))


def weights_digest(path: Path) -> str:
    """SHA-256 of a weights file."""
    return hashlib.sha256(read_weights(Path(split_part(str(path))[0]))).hexdigest()


def state_to_bytes(state: Mapping[str, Tensor]) -> bytes:
    """The named tensors as a safetensors file."""
    # Clones, because safetensors refuses tensors that share memory, as tied weights do.
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})


def normalisation_of(state: Mapping[str, Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation in the state of a whole `PixelModel`; None for a network alone, which has none."""
    names = {plain(name): name for name in state}
    for name in names:
        before, found, last = name.rpartition("mean")
        if not found or last or (before and not before.endswith(".")) or f"{before}std" not in names:
            continue
        if any(other.startswith(f"{before}{_NETWORK}") for other in names):
            mean, std = state[names[name]], state[names[f"{before}std"]]
            return tuple(mean.flatten().tolist()), tuple(std.flatten().tolist())
    return None


def load_state(model: PixelModel, state: Mapping[str, Tensor], source: str) -> None:
    """Load the state of a `PixelModel`, or of the network inside; see :func:`load_initial_weights`.

    ``source`` is how messages call the state.
    """
    network = model.network
    own = network.state_dict()
    found = as_named_by(own, current_layout(network, state))
    if found.rivals:
        parts = ", ".join(_short(one.rstrip(".")) for one in found.rivals)
        raise InputError(_FIELD, source, f"holds the network more than once; name one as FILE#NAME, of {parts}")
    given = dict(found.state)
    stored: dict[str, Tensor] = {}
    for name, tensor in found.aside.items():
        if found.state and (field := _NORMALISATION.get(name.rpartition(".")[2])) and tensor.numel() <= _CHANNELS:
            stored[field] = tensor
        elif not found.state or not _OF_TRAINING.match(name):
            given[name] = tensor
    for field, tensor in stored.items():
        _check_normalisation(f"model.{field}", getattr(model, field), tensor)
    if not stored:
        _check_normalised_once(model, state)
    _check_shapes(source, given, own)
    missing, unexpected = network.load_state_dict(given, strict=False)
    if missing or unexpected:
        raise InputError(_FIELD, source, f"of another network: {_differences(missing, unexpected)}")


def _check_normalised_once(model: PixelModel, state: Mapping[str, Tensor]) -> None:
    """Refuse to normalise by a mean and a std that are weights of the network itself, which so uses them too."""
    inside = normalisation_of(state)
    if inside is not None and inside == (tuple(model.mean.flatten().tolist()), tuple(model.std.flatten().tolist())):
        allowed = "the network holds them itself, so that it would normalise twice: say --model.mean 0 --model.std 1"
        raise InputError("model.mean", _rounded(model.mean), allowed)


def _check_normalisation(field: str, own: Tensor, stored: Tensor) -> None:
    mine, trained = _rounded(own), _rounded(stored)
    channels = max(len(mine), len(trained))
    one_each = [numbers * channels if len(numbers) == 1 else numbers for numbers in (mine, trained)]
    if one_each[0] != one_each[1]:
        raise InputError(field, mine, f"the weights were trained with {trained}")


def _rounded(numbers: Tensor) -> list[float]:
    return [float(f"{number:.6g}") for number in numbers.flatten().tolist()]


def _check_shapes(source: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    unlike = {
        name: (tuple(state[name].shape), tuple(own[name].shape))
        for name in own
        if name in state and state[name].shape != own[name].shape
    }
    if not unlike:
        return
    shapes = _shortened([f"{_short(name)} {stored}, here {needed}" for name, (stored, needed) in unlike.items()], "; ")
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    if not missing and not unexpected:
        match list({_changed(0, *pair) for pair in unlike.values()}):
            case [(classes, needed_classes)]:  # the last layer alone differs
                allowed = f"for {classes} classes, where {needed_classes} are needed ({shapes})"
                raise InputError(_FIELD, source, allowed)
        if all(_changed(1, *pair) for pair in unlike.values()):  # what the first layers take differs
            raise InputError(_FIELD, source, f"for images of another shape ({shapes})")
        raise InputError(
            _FIELD, source, f"of another network, or for other images and classes: other shapes ({shapes})"
        )
    names = _differences(missing, unexpected)
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
    return f"{len(names)} weights ({_shortened([*map(_short, names)], ', ')})" if names else "0 weights"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."


def _shortened(items: Sequence[str], separator: str) -> str:
    more = len(items) - _SHOWN
    return separator.join(items[:_SHOWN]) + (f"{separator}{more} more" if more > 0 else "")
