"""What was found, in plain sentences with numbers, whichever way it came out."""

from __future__ import annotations

from typing import Any

import pandas as pd

from distsens.analysis import ALL_LAYERS, CLEAN, NOISE, Findings, neurons_to_flip
from distsens.report.analysis.figures_models import of_model
from distsens.report.style import short

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
    True: "sensitive neurons decide more than random ones in {more}, less in {less}",
    False: "more images are right with the sensitive neurons set than with random ones in {more}, fewer in {less}",
}


def sentences(findings: Findings) -> dict[str, list[str]]:
    """The findings that can be said of these tables: under ``""`` those between models, then each model's own."""
    alone = (_accuracy, _floor, _ablation, _flips, _contributions, _training, _conditions)
    own = {name: [sentence for say in alone for sentence in say(findings, name)] for name in findings.names}
    return {"": _models(findings), **own}


def _accuracy(findings: Findings, name: str) -> list[str]:
    rows = of_model(findings.conditions, name).set_index("condition")
    clean, attacked, noisy = (rows.loc[one] for one in (CLEAN, findings.condition, NOISE))
    return [
        f"{name} classifies {_share(clean)} of {int(clean['images']):,} images right as they are, {_share(attacked)} "
        f"under {findings.condition}, and {_share(noisy)} under random noise of the same norm."
    ]


def _floor(findings: Findings, name: str) -> list[str]:
    rows = of_model(findings.layers[findings.layers["condition"] == findings.condition], name).dropna(
        subset="over_noise"
    )
    if len(rows) == 0:
        return []
    least, most = rows.loc[rows["over_noise"].idxmin()], rows.loc[rows["over_noise"].idxmax()]
    neurons = of_model(findings.neurons[findings.neurons["condition"] == findings.condition], name)
    below = float((neurons["over_noise"] <= 1.0).mean())
    return [
        f"In {name} the attack changes a layer {least['over_noise']:.1f} times ({short(least['layer'])}) to "
        f"{most['over_noise']:.1f} times ({short(most['layer'])}) as much as noise of the same norm; {below:.0%} of "
        "the neurons are moved by noise as much or more."
    ]


def _verdict(accuracy: float, low: float, high: float) -> str:
    return "more" if accuracy > high else "less" if accuracy < low else "same"


def chosen_ratio(curves: pd.DataFrame) -> float:
    """The ratio that is spoken of: the one nearest to a tenth."""
    ratios = curves["ratio"].unique()
    return float(min(ratios, key=lambda ratio: abs(ratio - 0.1)))


def ablation_verdicts(findings: Findings, name: str) -> list[Row]:
    """For each layer of a model, at the ratio that is spoken of and for benign values, top against random and bottom.

    ``top`` with Wilson's ``low`` and ``high``, ``random`` (mean of the draws) with ``random_low`` and ``random_high``,
    between which 95 % of random sets lie, ``bottom``, ``neurons``, and the ``verdict``: whether the sensitive neurons
    restore ``more`` or ``less`` than random ones, or the ``same``, inside that interval.
    """
    curves = of_model(findings.ablation_curves, name)
    if len(curves) == 0:
        return []
    replacement = "benign" if "benign" in set(curves["replacement"]) else curves["replacement"].iloc[0]
    ratio = chosen_ratio(curves)
    curves = curves[(curves["replacement"] == replacement) & (curves["ratio"] == ratio)]
    verdicts = []
    for layer, part in curves.groupby("layer", sort=False):
        rows = part.set_index("selection")
        top, random = rows.loc["top"], rows.loc["random"]
        verdicts.append(
            {
                "layer": layer,
                "replacement": replacement,
                "ratio": ratio,
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


def _ablation(findings: Findings, name: str) -> list[str]:
    verdicts = ablation_verdicts(findings, name)
    if not verdicts:
        return []
    value = {"benign": "its benign value", "zero": "zero", "mean": "its mean"}[verdicts[0]["replacement"]]
    benign = verdicts[0]["replacement"] == "benign"
    said = []
    whole = of_model(findings.interventions, name).iloc[0]
    overall = next((one for one in verdicts if one["layer"] == ALL_LAYERS), None)
    alone = [one for one in verdicts if one["layer"] != ALL_LAYERS]
    widest = max(alone, key=lambda one: abs(one["top"] - one["random"]))
    chosen = f"{short(widest['layer'])}" + (", where the difference is largest," if len(alone) > 1 else "")
    for one, where in ((overall, "every layer"), (widest, chosen)):
        if one is None:
            continue
        what = f"the {_percent(one['ratio'])} most sensitive neurons of {where}"
        said.append(
            f"Setting each of {what} in {name} to {value} leaves {one['top']:.1%} of {int(whole['images'])} "
            f"adversarial images right ({one['low']:.1%} to {one['high']:.1%}), where {whole['attacked']:.1%} are "
            f"right without; {one['draws']} random sets of that size leave {one['random']:.1%} "
            f"({one['random_low']:.1%} to {one['random_high']:.1%}), the least sensitive ones {one['bottom']:.1%}: "
            f"{_VERDICTS[benign][one['verdict']]}."
        )
    counts = {word: sum(one["verdict"] == word for one in alone) for word in ("more", "less")}
    said.append(
        f"Of the {len(alone)} layers of {name}, each by itself, {_TALLIES[benign].format(**counts)}; by chance it "
        "would be one in forty each."
    )
    return said


def _flips(findings: Findings, name: str) -> list[str]:
    curves = of_model(findings.flip_curves, name)
    if len(curves) == 0 or int(curves["images"].iloc[0]) == 0:
        return []
    needed = neurons_to_flip(curves)
    table = needed.pivot_table(
        index="layer", columns="selection", values="half", dropna=False, sort=False, observed=False
    )
    if "top" not in table or table["top"].isna().all():
        return [
            f"In {name} no number of one layer's neurons, the most sensitive first, flips half of the images that the "
            "attack flips."
        ]
    sizes = needed.drop_duplicates("layer").set_index("layer")["layer_neurons"]
    layer = (table["top"] / sizes).idxmin()
    random = table.loc[layer, "random"] if "random" in table else float("nan")
    control = "more than all" if pd.isna(random) else f"{int(random)}"
    return [
        f"In {name} the adversarial values of {int(table.loc[layer, 'top'])} of the {int(sizes[layer])} neurons of "
        f"{short(str(layer))}, the most sensitive ones, flip half of the images that the attack flips; in random order "
        f"it takes {control}."
    ]


def _contributions(findings: Findings, name: str) -> list[str]:
    gaps = of_model(findings.completeness, name)
    neurons = of_model(findings.neurons[findings.neurons["condition"] == findings.condition], name)
    if len(gaps) == 0 or "part" not in neurons:
        return []
    parts = neurons[neurons["sensitive"] & neurons["part"].notna()].groupby("layer", sort=False)["part"].sum()
    sizes = neurons[neurons["part"].notna()].groupby("layer", sort=False)["sensitive"].mean()
    least, most = gaps["through"].min(), gaps["through"].max()
    passing = (
        "change of the margin"
        if least > 0.995
        else f"change of the margin that passes through the layer, {least:.0%} to {most:.0%} of the whole"
    )
    return [
        f"The sensitive neurons of {name}, {_percent(sizes.mean())} of each layer, contribute {parts.min():.0%} "
        f"({short(str(parts.idxmin()))}) to {parts.max():.0%} ({short(str(parts.idxmax()))}) of the {passing}; all "
        f"contributions together miss the real change by {gaps['gap'].max():.1%} at most."
    ]


def _training(findings: Findings, name: str) -> list[str]:
    turnover = of_model(findings.turnover, name)
    if len(turnover) == 0:
        return []
    last = int(turnover["epoch"].max())
    early = turnover[turnover["epoch"] == int(turnover["epoch"].min())]
    final = turnover[turnover["epoch"] == last]
    said = [
        f"After its first epoch {name} has sensitive neurons whose Jaccard index with those of epoch {last} is "
        f"{early['since_last'].mean():.2f} (mean over layers; random sets {turnover['chance'].mean():.2f}); in the "
        f"last epoch {(final['born'].sum() / (final['born'].sum() + final['kept'].sum())):.0%} of them are new."
    ]
    correlation = of_model(findings.history_correlation, name)
    whole = len(correlation) and correlation[["absolute", "relative"]].notna().any().all()
    if whole and int(correlation["epochs"].iloc[0]) > 2:
        said.append(
            f"Over the {int(correlation['epochs'].iloc[0])} epochs of {name} the rank correlation of a layer's "
            f"sensitivity with robust accuracy is {correlation['absolute'].mean():+.2f} absolute and "
            f"{correlation['relative'].mean():+.2f} relative (mean over layers)."
        )
    return said


def _conditions(findings: Findings, name: str) -> list[str]:
    table = of_model(findings.condition_agreement, name)
    if len(table) == 0:
        return []
    means = table.groupby(["first", "second"], sort=False)["jaccard"].mean()
    first, second = means.idxmin()
    return [
        f"The sensitive neurons of {name} agree least between {first} and {second}: Jaccard index {means.min():.2f}, "
        f"where random sets come to {table['chance'].mean():.2f}."
    ]


def _models(findings: Findings) -> list[str]:
    if len(findings.models) < 2:
        return []
    attacked = findings.models.sort_values("robust", ascending=False).to_dict("records")
    listed = ", ".join(f"{row['model']} {row['robust']:.1%}" for row in attacked)
    said = [f"Accuracy under {findings.condition}, from the most: {listed}."]
    for measure in ("absolute", "relative"):
        rows = findings.models.sort_values(measure)
        listed = ", ".join(f"{row['model']} {row[measure]:.3g}" for row in rows.to_dict("records"))
        said.append(f"Mean {measure} sensitivity over layers, from the least: {listed}.")
    if len(findings.robustness):
        row = findings.robustness.iloc[0]
        said.append(
            f"Over the {int(row['models'])} models the rank correlation of sensitivity with accuracy under attack is "
            f"{row['absolute']:+.2f} absolute and {row['relative']:+.2f} relative; so few models show a direction at "
            "most."
            if row[["absolute", "relative"]].notna().all()
            else f"The {int(row['models'])} models do not differ in accuracy under attack or in sensitivity, so these "
            "have no rank correlation."
        )
    for second, part in findings.model_agreement.groupby("second", sort=False) if len(findings.model_agreement) else ():
        said.append(
            f"Matched by their outputs (mean correlation {part['correlation'].mean():.2f}), the sensitive neurons of "
            f"{findings.names[0]} and {second} agree with a Jaccard index of {part['jaccard'].mean():.2f}; random sets "
            f"come to {part['chance'].mean():.2f}."
        )
    return said


def _percent(share: float) -> str:
    return f"{100.0 * share:.3g} %"


def _share(row: Any) -> str:
    return f"{row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
