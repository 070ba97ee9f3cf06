"""Tables of neurons."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from distsens.sensitivity import LayerSensitivity, select_neurons
from distsens.storage import seal


def sensitivity_table(epoch: int, sensitivity: Mapping[str, LayerSensitivity], ratio: float) -> pd.DataFrame:
    """One row a neuron: epoch, layer, neuron (its index), absolute, relative, magnitude, and whether it is selected.

    ``selected`` marks the ``ceil(ratio * neurons)`` most sensitive of the layer by absolute sensitivity.
    """
    selected = select_neurons({layer: values.absolute for layer, values in sensitivity.items()}, ratio)
    layers = []
    for layer, values in sensitivity.items():
        count = len(values.absolute)
        chosen = set(selected[layer].tolist())
        layers.append(
            pd.DataFrame(
                {
                    "epoch": epoch,
                    "layer": layer,
                    "neuron": range(count),
                    "absolute": values.absolute.cpu().numpy(),
                    "relative": values.relative.cpu().numpy(),
                    "magnitude": values.magnitude.cpu().numpy(),
                    "selected": [neuron in chosen for neuron in range(count)],
                }
            )
        )
    return pd.concat(layers, ignore_index=True)


def sensitivity_parquet(
    epoch: int, sensitivity: Mapping[str, LayerSensitivity], ratio: float, experiment: str
) -> bytes:
    """The table of :func:`sensitivity_table` as a sealed Parquet file, of an experiment that is told by its digest."""
    return seal(sensitivity_table(epoch, sensitivity, ratio), {"epoch": epoch, "experiment": experiment})
