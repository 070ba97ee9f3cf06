"""The sums of an analysis as tables, which are all that figures, sentences and the report are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from distsens.analysis.interventions import ALL_LAYERS, Intervened, doublings
from distsens.analysis.measurement import NOISE, Measured
from distsens.evaluation import over_seeds, wilson
from distsens.sensitivity import NeuronStatistics, StatisticsMeter, select_neurons, selected_count

RANKED = ("absolute", "relative")


def neuron_table(meters: Mapping[str, StatisticsMeter], ratio: float, by: str = "absolute") -> pd.DataFrame:
    """One row for each neuron and condition.

    Columns: ``condition``, ``layer``, ``neuron`` (its number); ``absolute``, ``relative``, each with its standard error
    (``absolute_error``, ``relative_error``); ``magnitude`` and ``output``, the mean absolute and the mean benign
    output; ``noise`` (with ``noise_error``) and ``noise_relative``, the two sensitivities under random noise of the
    norm of the first condition (missing for others), and ``over_noise``, absolute over noise; ``rank`` in its layer,
    from 1, and ``sensitive``, whether it is among the ``ceil(ratio * neurons)`` first, both by the column ``by``.
    """
    parts: list[pd.DataFrame] = []
    for condition, meter in meters.items():
        if condition == NOISE:
            continue
        statistics = meter.compute()
        floor = meters[NOISE].compute() if NOISE in meters and not parts else None
        ranked = {layer: getattr(one, by) for layer, one in statistics.items()}
        chosen = select_neurons(ranked, ratio)
        for layer, one in statistics.items():
            part = _rows(one).assign(condition=condition, layer=layer)
            part["noise"] = np.nan if floor is None else floor[layer].absolute.cpu().numpy()
            part["noise_error"] = np.nan if floor is None else floor[layer].absolute_error.cpu().numpy()
            part["noise_relative"] = np.nan if floor is None else floor[layer].relative.cpu().numpy()
            part["over_noise"] = part["absolute"] / part["noise"].where(part["noise"] > 0)
            part["rank"] = part[by].rank(method="first", ascending=False).astype("int64")
            part["sensitive"] = np.isin(part["neuron"], chosen[layer].cpu().numpy())
            parts.append(part)
    first = ["condition", "layer", "neuron"]
    table = pd.concat(parts, ignore_index=True)
    return table[[*first, *(name for name in table if name not in first)]]


def class_table(meter: StatisticsMeter, classes: tuple[str, ...]) -> pd.DataFrame:
    """One row for each class of benign images, ``label``, and neuron; empty if no class was measured by itself.

    ``pairs`` of the class, and of the neuron over them ``absolute``, ``relative``, their standard errors, ``magnitude``
    and ``output``.
    """
    parts = [
        _rows(one).assign(label=name, layer=layer, pairs=int(meter.counts[label]))
        for label, name in enumerate(classes[: meter.classes])
        if meter.counts[label] > 0
        for layer, one in meter.compute(label).items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _rows(one: NeuronStatistics) -> pd.DataFrame:
    values = {name: value.cpu().numpy() for name, value in vars(one).items()}
    return pd.DataFrame({"neuron": np.arange(len(one.absolute)), **values})


def layer_table(neurons: pd.DataFrame) -> pd.DataFrame:
    """One row for each layer and condition, in the layers' order.

    ``neurons``, their number; mean and median over neurons of absolute and relative sensitivity (``absolute``,
    ``absolute_median``, ``absolute_tenth`` and ``absolute_ninetieth`` for the tenth and ninetieth percentiles, likewise
    relative); ``noise`` and ``noise_relative``, means; ``over_noise``, the mean absolute over the mean noise.
    """
    keys = [name for name in ("model", "condition", "layer") if name in neurons]
    groups = neurons.groupby(keys, sort=False)
    table = groups.agg(neurons=("neuron", "size"))
    for measure in RANKED:
        table[measure] = groups[measure].mean()
        table[f"{measure}_median"] = groups[measure].median()
        table[f"{measure}_tenth"] = groups[measure].quantile(0.1)
        table[f"{measure}_ninetieth"] = groups[measure].quantile(0.9)
    table["noise"] = groups["noise"].mean()
    table["noise_relative"] = groups["noise_relative"].mean()
    table["over_noise"] = table["absolute"] / table["noise"].where(table["noise"] > 0)
    return table.reset_index()


def ablation_table(found: Intervened, sizes: Mapping[str, int]) -> pd.DataFrame:
    """One row for each set of neurons that was ablated.

    ``layer`` (or ``all layers``), ``replacement``, ``selection``, ``draw``, ``ratio``, ``neurons`` (how many were set),
    ``correct`` and ``images``: adversarial images classified right then.
    """
    rows = [
        {**key._asdict(), "neurons": _count(sizes, key.layer, key.ratio), "correct": correct, "images": found.images}
        for key, correct in found.correct.items()
    ]
    return pd.DataFrame(rows)


def _count(sizes: Mapping[str, int], layer: str, ratio: float) -> int:
    if layer == ALL_LAYERS:
        return sum(selected_count(size, ratio) for size in sizes.values())
    return selected_count(sizes[layer], ratio)


def ablation_curves(ablations: pd.DataFrame) -> pd.DataFrame:
    """Accuracy against the number of neurons set, with 95 % intervals: one row a layer, replacement, selection, number.

    ``accuracy``, ``low``, ``high``: of ``top`` and ``bottom`` Wilson's interval over the images; of ``random`` the mean
    over draws, and the interval in which one more random set of neurons would lie on these images. ``least`` and
    ``most`` are the extremes over draws.
    """
    keys = [name for name in ("model", "layer", "replacement", "selection", "ratio", "neurons") if name in ablations]
    rows = []
    for key, group in ablations.groupby(keys, sort=False):
        accuracies = (group["correct"] / group["images"]).tolist()
        if len(accuracies) == 1:
            low, high = wilson(int(group["correct"].iloc[0]), int(group["images"].iloc[0]))
            value = accuracies[0]
        else:
            value, low, high = _one_more(accuracies, int(group["images"].iloc[0]))
        rows.append(
            dict(zip(keys, key, strict=True))
            | {"accuracy": value, "low": low, "high": high, "least": min(accuracies), "most": max(accuracies)}
            | {"draws": len(accuracies), "images": int(group["images"].iloc[0])}
        )
    return pd.DataFrame(rows)


def _one_more(shares: list[float], images: int) -> tuple[float, float, float]:
    """Mean of the draws, and the 95 % prediction interval of one more: ``mean +- t s sqrt(1 + 1 / n)``.

    It is one image wide to each side at the least, because draws that happen to agree say little of the next.
    """
    spread = over_seeds(shares)
    half = max((spread.high - spread.mean) * math.sqrt(len(shares) + 1), 1.0 / max(1, images))
    return spread.mean, max(0.0, spread.mean - half), min(1.0, spread.mean + half)


def patching_table(found: Intervened, sizes: Mapping[str, int]) -> pd.DataFrame:
    """How many neurons' adversarial values flip the prediction of a benign image, of the images that the attack flips.

    One row for each layer, selection, draw and number of neurons at which images flipped: ``neurons``, ``flipped`` (for
    the first time at that number), ``images`` (all that the attack flips), ``layer_neurons``. A row with 0 neurons
    counts images that no number of the layer's neurons flipped.
    """
    rows = [
        {**key._asdict(), "flipped": count, "images": found.flipped, "layer_neurons": sizes[key.layer]}
        for key, count in found.first.items()
    ]
    columns = ["layer", "selection", "draw", "neurons", "flipped", "images", "layer_neurons"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[:4], ignore_index=True)


def flip_curves(patching: pd.DataFrame) -> pd.DataFrame:
    """Part of the images flipped by at most so many neurons: ``neurons``, ``share``, its ``low`` and ``high`` (95 %).

    Of random orders it is the mean over draws, and the interval in which one more random order would lie.
    """
    rows = []
    keys = [name for name in ("model", "layer", "selection") if name in patching]
    for key, group in patching.groupby(keys, sort=False):
        images = int(group["images"].iloc[0])
        for neurons in doublings(int(group["layer_neurons"].iloc[0])):
            reached = group["neurons"].between(1, neurons)
            draws = group.assign(reached=group["flipped"].where(reached, 0)).groupby("draw")["reached"].sum()
            shares = (draws / max(1, images)).tolist()
            if len(shares) == 1:
                low, high = wilson(int(draws.iloc[0]), images)
                value = shares[0]
            else:
                value, low, high = _one_more(shares, images)
            rows.append(
                dict(zip(keys, key, strict=True))
                | {"neurons": neurons, "share": value, "low": low, "high": high, "images": images}
                | {"layer_neurons": int(group["layer_neurons"].iloc[0])}
            )
    columns = [*keys, "neurons", "share", "low", "high", "images", "layer_neurons"]
    return pd.DataFrame(rows, columns=columns)


def neurons_to_flip(curves: pd.DataFrame) -> pd.DataFrame:
    """The smallest number of neurons that flips half of the images (missing if none does), a layer and selection."""
    keys = [name for name in ("model", "layer", "selection") if name in curves]
    half = curves[curves["share"] >= 0.5].groupby(keys, sort=False)["neurons"].min().rename("half")
    most = curves.groupby(keys, sort=False).agg(layer_neurons=("layer_neurons", "first"), share=("share", "max"))
    return most.join(half).reset_index()


def contribution_table(found: Intervened) -> pd.DataFrame:
    """One row a neuron: ``contribution`` to the change of the margin, mean over pairs, and ``contribution_error``.

    ``part`` is its contribution over the sum of the layer's, so that parts sum to 1: its share of what passes through
    the layer, which beside a shortcut can be little of the whole change.
    """
    parts = []
    for layer, sums in found.contributions.items():
        mean = (sums.contribution / found.images).numpy()
        variance = (sums.squares / found.images).numpy() - mean**2
        error = (
            np.sqrt(np.clip(variance, 0, None) / (found.images - 1)) if found.images > 1 else np.full_like(mean, np.nan)
        )
        parts.append(
            pd.DataFrame({"layer": layer, "neuron": np.arange(len(mean)), "contribution": mean})
            .assign(contribution_error=error)
            .assign(part=mean / mean.sum() if mean.sum() else 0.0)
        )
    return pd.concat(parts, ignore_index=True)


def completeness_table(found: Intervened) -> pd.DataFrame:
    """One row a layer: ``gap``, how far the contributions' sum is from the real change, and ``through``.

    ``gap`` is :attr:`distsens.sensitivity.Contributions.gap` over all pairs; ``through`` is the mean change that passes
    through the layer over the mean of the whole change, in absolute value (1 in a sequential network).
    """
    return pd.DataFrame(
        [
            {
                "layer": layer,
                "gap": sums.missed / max(sums.change, 1e-30),
                "through": sums.change / max(sums.total, 1e-30),
            }
            for layer, sums in found.contributions.items()
        ]
    )


def measured_rows(found: Measured) -> list[dict[str, object]]:
    """One row a condition: ``images``, ``accuracy`` with ``low`` and ``high`` (Wilson), ``flipped``, ``l2``.

    Accuracy under an attack counts images that are right clean too; ``l2`` is the mean L2 norm of the change.
    """
    rows = []
    for name, correct in found.correct.items():
        low, high = wilson(correct, found.images)
        rows.append(
            {
                "condition": name,
                "images": found.images,
                "correct": correct,
                "accuracy": correct / found.images,
                "low": low,
                "high": high,
                "flipped": found.flipped.get(name, 0) / found.images,
                "l2": found.distance.get(name, 0.0) / found.images,
            }
        )
    return rows
