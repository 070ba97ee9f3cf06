"""Do different attacks, radii, seeds and models find the same sensitive neurons?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from distsens.data import as_tensor
from distsens.networks import in_own_type
from distsens.precision import full_float32
from distsens.sensitivity import (
    ActivationProbe,
    NeuronCorrelation,
    chance_jaccard,
    in_eval_mode,
    jaccard,
    rank_correlation,
)


def match_neurons(correlation: Tensor) -> tuple[Tensor, float]:
    """Which neuron of a second network is which of a first: (neurons,), and the mean correlation of those matched.

    The permutation that maximises the sum of correlations (a linear assignment; Kuhn's Hungarian method), as in Li et
    al., "Convergent Learning", ICLR 2016. Entry m is the second network's number of what the first calls m.

    Parameters
    ----------
    correlation : (neurons, neurons) of :class:`distsens.sensitivity.NeuronCorrelation`.
    """
    rows, columns = linear_sum_assignment(correlation.numpy(), maximize=True)
    return torch.as_tensor(columns), float(correlation.numpy()[rows, columns].mean())


def match_all(correlations: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, float]]:
    """:func:`match_neurons` of every layer in which the networks have equally many neurons."""
    return {
        layer: match_neurons(values) for layer, values in correlations.items() if values.shape[0] == values.shape[1]
    }


@full_float32()
@torch.no_grad()
def correlate(
    first: nn.Module, second: nn.Module, layers: Mapping[str, str], images: Tensor, batch_size: int = 32
) -> dict[str, Tensor]:
    """Correlations (neurons, neurons) of two networks' outputs on benign images, for layers by name of the first.

    Layers whose outputs differ in their number of positions are left out.
    """
    meters: dict[str, NeuronCorrelation] = {layer: NeuronCorrelation() for layer in layers}
    with in_eval_mode(first) as a, in_eval_mode(second) as b:
        for batch in images.split(batch_size):
            probe_a = ActivationProbe[Tensor](a, list(layers))
            probe_b = ActivationProbe[Tensor](b, list(layers.values()))
            with probe_a:
                a(in_own_type(a, batch))
            with probe_b:
                b(in_own_type(b, batch))
            for layer, other in layers.items():
                x, y = probe_a.outputs[layer], probe_b.outputs[other]
                if layer in meters and x.shape[2] == y.shape[2]:
                    meters[layer].update(x, y)
                else:
                    meters.pop(layer, None)
    return {layer: meter.correlation for layer, meter in meters.items()}


def condition_agreement(neurons: pd.DataFrame, by: str = "absolute") -> pd.DataFrame:
    """Agreement of the sensitive sets of one model under every two conditions, a layer.

    ``jaccard`` of the sensitive neurons, ``chance``, what two random sets of their sizes come to, and Spearman's
    ``rank_correlation`` over all neurons.
    """
    rows = []
    conditions = dict(list(neurons.groupby("condition", sort=False)))
    for (name, first), (other, second) in combinations(conditions.items(), 2):
        for layer, a in first.groupby("layer", sort=False):
            b = second[second["layer"] == layer]
            rows.append({"first": name, "second": other, "layer": layer, **_agreement(a, b, by)})
    return pd.DataFrame(rows, columns=["first", "second", "layer", "jaccard", "chance", "rank_correlation"])


def model_agreement(
    first: pd.DataFrame, second: pd.DataFrame, matches: Mapping[str, tuple[Tensor, float]], by: str = "absolute"
) -> pd.DataFrame:
    """Agreement of two models' sensitive neurons, a layer, as they are numbered and as they are matched.

    Parameters
    ----------
    first, second : neuron tables of one condition; their layers are those of ``matches``.
    matches : for each layer the permutation and its mean correlation, of :func:`match_neurons`.

    Returns
    -------
    Columns of :func:`condition_agreement` for the matched neurons, ``correlation``, the mean over matched neurons, and
    ``unmatched``, the Jaccard index by number, which means something only for models of one initialisation.
    """
    rows = []
    for layer, (permutation, correlation) in matches.items():
        a = first[first["layer"] == layer].sort_values("neuron")
        b = second[second["layer"] == layer].sort_values("neuron")
        matched = b.iloc[permutation.numpy()].assign(neuron=np.arange(len(b)))
        rows.append(
            {
                "layer": layer,
                **_agreement(a, matched, by),
                "correlation": correlation,
                "unmatched": _agreement(a, b, by)["jaccard"],
            }
        )
    return pd.DataFrame(rows, columns=["layer", "jaccard", "chance", "rank_correlation", "correlation", "unmatched"])


def _agreement(first: pd.DataFrame, second: pd.DataFrame, by: str) -> dict[str, float]:
    a, b = (part.sort_values("neuron") for part in (first, second))
    chosen_a, chosen_b = (as_tensor(part.loc[part["sensitive"], "neuron"].to_numpy()) for part in (a, b))
    return {
        "jaccard": jaccard(chosen_a, chosen_b),
        "chance": chance_jaccard(len(a), len(chosen_a), len(chosen_b)),
        "rank_correlation": rank_correlation(*(as_tensor(part[by].to_numpy()) for part in (a, b))),
    }
