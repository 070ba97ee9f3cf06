"""Which neurons of a layer count as sensitive, and the controls beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from distsens.errors import InputError
from distsens.randomness import sample_keys

Selection = Literal["top", "random", "bottom", "all"]


def selected_count(neurons: int, ratio: float) -> int:
    """``ceil(ratio * neurons)``, at least one; rounded first so that 0.07 of 100 neurons are 7, not 8."""
    if not 0.0 < ratio <= 1.0:
        raise InputError("stabilize.ratio", ratio, "it must be in (0, 1]")
    return max(1, math.ceil(round(ratio * neurons, 9)))


def select_neurons(
    sensitivity: Mapping[str, Tensor], ratio: float, how: Selection = "top", *, seed: int = 0
) -> dict[str, Tensor]:
    """Omega_l for every layer: the indices, ascending, of ``ceil(ratio * neurons)`` neurons.

    Parameters
    ----------
    sensitivity : (neurons,) values for every layer, equal on all workers.
    ratio : in (0, 1], the part of each layer that is selected; ``"all"`` takes the whole layer.
    how : ``"top"`` most sensitive (ties go to the lower index), ``"bottom"`` least sensitive, ``"random"`` a subset
        that depends on ``seed`` and the layer alone and so stays the same for a whole run, ``"all"``.
    """
    if how not in get_args(Selection):
        raise InputError("stabilize.selection", how, f"allowed are {', '.join(get_args(Selection))}")
    chosen = {}
    for layer, values in sensitivity.items():
        count = len(values) if how == "all" else selected_count(len(values), ratio)
        chosen[layer] = order_neurons(layer, values, how, seed=seed)[:count].sort().values
    return chosen


def order_neurons(layer: str, values: Tensor, how: Selection, *, seed: int = 0) -> Tensor:
    """The neurons of a layer, (neurons,), in the order in which :func:`select_neurons` takes them."""
    numbers = torch.arange(len(values), device=values.device)
    if how == "all":
        return numbers
    if how == "random":
        return torch.argsort(sample_keys(numbers, seed, layer))
    return torch.argsort(values, descending=how == "top", stable=True)


def kept_fraction(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """Part of the neurons selected before that are selected still, per layer."""
    return {
        layer: torch.isin(before[layer].cpu(), after[layer].cpu()).float().mean().item()
        for layer in after
        if layer in before
    }
