"""What interventions showed of a model, in sentences: whether its sensitive neurons decide."""

from __future__ import annotations

from typing import Any

import pandas as pd

from distsens.analysis import ALL_LAYERS, Findings, neurons_to_flip
from distsens.report.analysis.figures_models import of_model
from distsens.report.analysis.words import counted, listed, of_layers, only_least, only_most, percent, reach
from distsens.report.style import bare

Row = dict[str, Any]

# With its benign value a neuron carries nothing of the attack, and is otherwise itself: what that restores, it decided.
# With zero or its mean it also loses what it is for, so there it can only be said what is left.
_VERDICTS = {
    True: {
        "more": "sensitive neurons decide more than random ones",
        "less": "sensitive neurons decide less than random ones",
        "same": "no clear difference between sensitive and random ones",
    },
    False: {
        "more": "more are right than with random sets",
        "less": "fewer are right than with random sets",
        "same": "no clear difference between sensitive and random ones",
    },
}
_TALLIES = {
    True: {
        "more": "sensitive neurons decide more than random ones",
        "less": "sensitive neurons decide less than random ones",
    },
    False: {
        "more": "more images are right with the sensitive neurons set than with random ones",
        "less": "fewer images are right with the sensitive neurons set than with random ones",
    },
}
# Half of fewer images is no finding.
_FEW = 10


def ablation_sentences(findings: Findings, name: str) -> list[str]:
    """What setting neurons to another value does."""
    curves = _curves(findings, name)
    if len(curves) == 0:
        return []
    verdicts = ablation_verdicts(findings, name)
    alone = {one["layer"]: one for one in verdicts if one["layer"] != ALL_LAYERS}
    images = int(of_model(findings.interventions, name)["images"].iloc[0])
    differences = {layer: abs(one["top"] - one["random"]) * images for layer, one in alone.items()}
    said = [_setting(findings, name, one, "every layer") for one in verdicts if one["layer"] == ALL_LAYERS]
    if len(alone) == 1:
        said += [_setting(findings, name, one, bare(layer)) for layer, one in alone.items()]
    elif (widest := only_most(differences)) is not None and differences[widest] >= 1.0:  # image
        where = f"{bare(widest)}, where the difference is largest of {len(alone)} layers,"
        said.append(_setting(findings, name, alone[widest], where))
    return said + ([_tally(findings, name, curves)] if alone else [])


def ablation_verdicts(findings: Findings, name: str) -> list[Row]:
    """For each layer of a model, at the ratio nearest to a tenth and for benign values, top against random and bottom.

    ``top`` with Wilson's ``low`` and ``high``, ``random`` (mean of the draws) with ``random_low`` and ``random_high``,
    between which 95 % of random sets lie, ``bottom``, ``neurons``, and the ``verdict``: whether the sensitive neurons
    restore ``more`` or ``less`` than random ones, or the ``same``, inside that interval.
    """
    curves = _curves(findings, name)
    if len(curves) == 0:
        return []
    return _verdicts_at(curves, min(curves["ratio"].unique(), key=lambda ratio: abs(ratio - 0.1)))


def _curves(findings: Findings, name: str) -> pd.DataFrame:
    """Of benign values, or of the first that neurons were set to."""
    curves = of_model(findings.ablation_curves, name)
    if len(curves) == 0:
        return curves
    replacement = "benign" if "benign" in set(curves["replacement"]) else curves["replacement"].iloc[0]
    return curves[curves["replacement"] == replacement]


def _verdicts_at(curves: pd.DataFrame, ratio: float) -> list[Row]:
    verdicts = []
    for layer, part in curves[curves["ratio"] == ratio].groupby("layer", sort=False):
        rows = part.set_index("selection")
        top, random = rows.loc["top"], rows.loc["random"]
        verdicts.append(
            {
                "layer": layer,
                "replacement": str(top["replacement"]),
                "ratio": float(ratio),
                "neurons": int(top["neurons"]),
                "top": float(top["accuracy"]),
                "low": float(top["low"]),
                "high": float(top["high"]),
                "random": float(random["accuracy"]),
                "random_low": float(random["low"]),
                "random_high": float(random["high"]),
                "draws": int(random["draws"]),
                "bottom": float(rows.loc["bottom", "accuracy"]),
                "verdict": _verdict(top["accuracy"], random["low"], random["high"]),
            }
        )
    return verdicts


def _verdict(accuracy: float, low: float, high: float) -> str:
    return "more" if accuracy > high else "less" if accuracy < low else "same"


def _setting(findings: Findings, name: str, one: Row, where: str) -> str:
    whole = of_model(findings.interventions, name).iloc[0]
    images = int(whole["images"])
    value = {"benign": "its benign value", "zero": "zero", "mean": "its mean"}[one["replacement"]]
    return (
        f"Setting each of the {percent(one['ratio'])} most sensitive neurons ({one['neurons']:,}) of {where} in {name} "
        f"to {value} leaves {counted(one['top'], images)} adversarial images right, {one['low']:.1%} to "
        f"{one['high']:.1%}, where {counted(whole['attacked'], images)} are right without; {one['draws']} random sets "
        f"of that size leave {one['random']:.1%}, {one['random_low']:.1%} to {one['random_high']:.1%}, the least "
        f"sensitive ones {one['bottom']:.1%}: {_VERDICTS[one['replacement'] == 'benign'][one['verdict']]}."
    )


def _tally(findings: Findings, name: str, curves: pd.DataFrame) -> str:
    """In how many layers the sensitive neurons do more or less than random ones, at every ratio: they may differ."""
    by_ratio = {
        float(ratio): [one["verdict"] for one in _verdicts_at(curves, ratio) if one["layer"] != ALL_LAYERS]
        for ratio in sorted(curves["ratio"].unique())
    }
    layers = max(len(verdicts) for verdicts in by_ratio.values())
    images = int(of_model(findings.interventions, name)["images"].iloc[0])
    head = f"Of the {layers} layer{'s' * (layers > 1)} of {name}, each by itself and on {images} images, "
    counts = {
        word: {ratio: verdicts.count(word) for ratio, verdicts in by_ratio.items() if word in verdicts}
        for word in ("more", "less")
    }
    words = _TALLIES[str(curves["replacement"].iloc[0]) == "benign"]
    spoken = [
        f"{words[word]} in {listed([f'{count} at {percent(ratio)}' for ratio, count in found.items()])} of the neurons"
        for word, found in counts.items()
        if found
    ]
    if not spoken:
        ratios = listed([percent(ratio) for ratio in by_ratio])
        return f"{head}none shows a clear difference between sensitive and random neurons, at {ratios} of the neurons."
    rest = [percent(ratio) for ratio in by_ratio if not any(ratio in found for found in counts.values())]
    spoken += [f"at {listed(rest)} there is no clear difference"] if rest else []
    return f"{head}{'; '.join(spoken)}; by chance it would be one in forty each."


def flip_sentences(findings: Findings, name: str) -> list[str]:
    """How few neurons carry the attack."""
    curves = of_model(findings.flip_curves, name)
    if len(curves) == 0 or int(curves["images"].iloc[0]) < _FEW:
        return []
    images = int(curves["images"].iloc[0])
    half = -(-images // 2)
    needed = neurons_to_flip(curves)
    table = needed.pivot_table(
        index="layer", columns="selection", values="half", dropna=False, sort=False, observed=False
    )
    if "top" not in table or table["top"].isna().all():
        return [
            f"In {name} no number of one layer's neurons, the most sensitive first, flips half ({half}) of the "
            f"{images} images that the attack flips."
        ]
    sizes = needed.drop_duplicates("layer").set_index("layer")["layer_neurons"]
    parts = (table["top"] / sizes).dropna().to_dict()
    layer = next(iter(parts)) if len(parts) == 1 else only_least(parts)
    if layer is None:  # several need equally few: none of them is the one
        return []
    top, random = table.loc[layer, "top"], table.loc[layer, "random"] if "random" in table else float("nan")
    control = "more than all" if pd.isna(random) else "as many" if random == top else f"{int(random)}"
    return [
        f"In {name} the adversarial values of {int(top)} of the {int(sizes[layer])} neurons of {bare(str(layer))} "
        f"({percent(parts[layer])}), the most sensitive ones, flip half ({half}) of the {images} images that the "
        f"attack flips; in random order it takes {control}."
    ]


def contribution_sentences(findings: Findings, name: str, ratio: float) -> list[str]:
    """What part of the change of the margin passes through the sensitive neurons."""
    gaps = of_model(findings.completeness, name)
    neurons = of_model(findings.neurons[findings.neurons["condition"] == findings.condition], name)
    if len(gaps) == 0 or "part" not in neurons:
        return []
    # Where nothing passes there are no parts of it.
    passed = neurons.groupby("layer", sort=False)["part"].transform(lambda part: part.abs().sum())
    neurons = neurons[passed > 0]
    gaps = gaps[gaps["layer"].isin(neurons["layer"])]
    if len(gaps) == 0:
        return []
    parts = neurons[neurons["sensitive"]].groupby("layer", sort=False)["part"].sum().to_dict()
    least, most = gaps["through"].min(), gaps["through"].max()
    passing = (
        "change of the margin"
        if least > 0.995
        else f"change of the margin that passes through the layer, {least:.0%} to {most:.0%} of the whole"
    )
    images = int(of_model(findings.interventions, name)["images"].iloc[0])
    return [
        f"The most sensitive {percent(ratio)} of the neurons of each of {len(gaps)} layers of {name} "
        f"({of_layers(neurons['sensitive'])}) contribute {reach(parts, '{:.0%}')} of the {passing}, over {images} "
        f"images; all contributions together miss the real change by {gaps['gap'].max():.1%} at most."
    ]
