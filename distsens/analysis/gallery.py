"""What sensitive neurons see: the images that move them most, and their feature maps before and after the attack."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from distsens.logits import plain_logits, predictions
from distsens.precision import full_float32
from distsens.sensitivity import ActivationProbe, TopImages, in_eval_mode

Why = Literal["changed", "activated"]
Wanted = Mapping[str, Mapping[int, Mapping[Why, Sequence[int]]]]


@dataclass(frozen=True)
class Sight:
    """One neuron at one pair.

    why : the image is among those that ``changed`` the neuron most, or that ``activated`` it most when benign.
    image : number in the split. label, benign_prediction, adversarial_prediction : classes.
    benign, adversarial : (C, H, W) in [0, 1]. before, after : the neuron's outputs on them, (h, w); (1, 1) for a unit.
    """

    layer: str
    neuron: int
    why: Why
    image: int
    label: int
    benign_prediction: int
    adversarial_prediction: int
    benign: npt.NDArray[np.float32]
    adversarial: npt.NDArray[np.float32]
    before: npt.NDArray[np.float32]
    after: npt.NDArray[np.float32]


def wanted_sights(neurons: pd.DataFrame, changed: TopImages, activated: TopImages, count: int, images: int) -> Wanted:
    """Which images are to be seen of the ``count`` first-ranked neurons of every layer of one condition."""
    wanted: dict[str, dict[int, dict[Why, list[int]]]] = {}
    for layer, part in neurons[neurons["rank"] <= count].groupby("layer", sort=False):
        name = str(layer)
        wanted[name] = {
            int(neuron): {
                "changed": changed.images[name][int(neuron), :images].tolist(),
                "activated": activated.images[name][int(neuron), :images].tolist(),
            }
            for neuron in part.sort_values("rank")["neuron"]
        }
    return wanted


def numbers_in(wanted: Wanted) -> list[int]:
    """The numbers of all images that are to be seen, ascending."""
    return sorted(
        {
            number
            for layer in wanted.values()
            for neuron in layer.values()
            for some in neuron.values()
            for number in some
        }
    )


@full_float32()
@torch.no_grad()
def look(
    model: nn.Module, images: Tensor, twins: Tensor, labels: Tensor, numbers: Tensor, wanted: Wanted, batch_size: int
) -> list[Sight]:
    """See them: images and twins (N, C, H, W), classes and numbers (N,) are those of :func:`numbers_in`, in order."""
    chosen = {layer: torch.tensor(list(neurons)) for layer, neurons in wanted.items()}
    probe = ActivationProbe(model, list(wanted), read=lambda layer, outputs: outputs[:, chosen[layer]].float().cpu())
    seen: list[tuple[dict[str, Tensor], Tensor]] = []
    with in_eval_mode(model) as network:
        for rows in torch.arange(len(images)).split(batch_size):
            for batch in (images[rows], twins[rows]):
                with probe:
                    logits = plain_logits(network, batch)
                seen.append((probe.outputs, predictions(logits).cpu()))
    maps = [{layer: torch.cat([part[layer] for part, _ in seen[half::2]]) for layer in wanted} for half in (0, 1)]
    predicted = [torch.cat([part for _, part in seen[half::2]]) for half in (0, 1)]
    place = {int(number): position for position, number in enumerate(numbers)}
    height, width = images.shape[-2:]
    sights = []
    for layer, neurons in wanted.items():
        for position, (neuron, reasons) in enumerate(neurons.items()):
            for why, some in reasons.items():
                for number in some:
                    i = place[number]
                    before, after = (as_map(half[layer][i, position], height / width).numpy() for half in maps)
                    sights.append(
                        Sight(
                            layer,
                            neuron,
                            why,
                            number,
                            int(labels[i]),
                            int(predicted[0][i]),
                            int(predicted[1][i]),
                            images[i].cpu().numpy(),
                            twins[i].cpu().numpy(),
                            before,
                            after,
                        )
                    )
    return sights


def as_map(values: Tensor, aspect: float) -> Tensor:
    """Values (positions,) as (h, w) in about the image's ratio; a class token, which has no place, is left out.

    Positions that make no such rectangle stay one row.
    """
    for skipped in (0, 1):
        count = len(values) - skipped
        height = round(math.sqrt(count * aspect)) if count > 0 else 0
        if height and count % height == 0 and abs(count / height * aspect - height) < 1.0:
            return values[skipped:].reshape(height, -1)
    return values[None]
