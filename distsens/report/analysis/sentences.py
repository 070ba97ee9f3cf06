"""What was found, in plain sentences with numbers, whichever way it came out.

Each says how many images, neurons, layers, epochs or models it counts and at which ratio, and none finds an extreme
among values that are equal, or a difference between zeros.
"""

from __future__ import annotations

import pandas as pd

from distsens.analysis import CLEAN, NOISE, Findings
from distsens.report.analysis.figures_models import of_model
from distsens.report.analysis.sentences_ablation import ablation_sentences, contribution_sentences, flip_sentences
from distsens.report.analysis.words import accuracy, counted, of_layers, only_least, percent, ranked, reach


def sentences(findings: Findings, ratio: float) -> dict[str, list[str]]:
    """The findings that can be said of these tables: under ``""`` those between models, then each model's own.

    Parameters
    ----------
    ratio : part of each layer's neurons that counts as sensitive.
    """
    own = {
        name: [
            *_accuracy(findings, name),
            *_floor(findings, name),
            *ablation_sentences(findings, name),
            *flip_sentences(findings, name),
            *contribution_sentences(findings, name, ratio),
            *_training(findings, name),
            *_conditions(findings, name, ratio),
        ]
        for name in findings.names
    }
    return {"": _models(findings, ratio), **own}


def _accuracy(findings: Findings, name: str) -> list[str]:
    rows = of_model(findings.conditions, name).set_index("condition")
    clean, attacked, noisy = (rows.loc[one] for one in (CLEAN, findings.condition, NOISE))
    return [
        f"{name} classifies {accuracy(clean)} of the images right as they are, {accuracy(attacked)} under "
        f"{findings.condition}, and {accuracy(noisy)} under random noise of the same norm."
    ]


def _floor(findings: Findings, name: str) -> list[str]:
    layers = of_model(findings.layers[findings.layers["condition"] == findings.condition], name)
    times = layers.dropna(subset="over_noise").set_index("layer")["over_noise"].to_dict()
    if not any(times.values()):
        return []
    neurons = of_model(findings.neurons[findings.neurons["condition"] == findings.condition], name)
    moved = neurons["over_noise"].dropna()
    below = int((moved <= 1.0).sum())
    rest = f"; {below:,} of {len(moved):,} neurons are moved by noise as much or more" if below else ""
    return [
        f"In {name} the attack changes {'a layer' if len(times) == 1 else f'each of {len(times)} layers'} "
        f"{reach(times, '{:.1f} times')} as much as noise of the same norm{rest}."
    ]


def _training(findings: Findings, name: str) -> list[str]:
    turnover = of_model(findings.turnover, name)
    epochs = turnover["epoch"].unique() if len(turnover) else []
    if len(epochs) < 2:
        return []
    first, last = int(min(epochs)), int(max(epochs))
    early, final = turnover[turnover["epoch"] == first], turnover[turnover["epoch"] == last]
    history = of_model(findings.history, name)
    marked = history.loc[history["epoch"] == last, "selected"]
    said = [
        f"Of the {of_layers(marked)} neurons of {name} that are sensitive in epoch {last}, "
        f"{int(final['born'].sum()):,} were not in the epoch before; the Jaccard index with those of epoch {first} is "
        f"{early['since_last'].mean():.2f} (mean over {len(early)} layers; random sets {early['chance'].mean():.2f})."
    ]
    correlation = of_model(findings.history_correlation, name)
    if len(correlation) == 0 or int(correlation["epochs"].iloc[0]) < 3:
        return said
    known = {measure: correlation[measure].dropna() for measure in ("absolute", "relative")}
    spoken = [f"{values.mean():+.2f} {measure}" for measure, values in known.items() if len(values)]
    if spoken:
        layers = max(len(values) for values in known.values())
        said.append(
            f"Over the {int(correlation['epochs'].iloc[0])} epochs of {name} the rank correlation of a layer's "
            f"sensitivity with robust accuracy is {' and '.join(spoken)} (mean over {layers} "
            f"layer{'s' * (layers > 1)})."
        )
    return said


def _conditions(findings: Findings, name: str, ratio: float) -> list[str]:
    table = of_model(findings.condition_agreement, name)
    if len(table) == 0:
        return []
    means = table.groupby(["first", "second"], sort=False)[["jaccard", "chance"]].mean()
    pairs = means["jaccard"].to_dict()
    pair = next(iter(pairs)) if len(pairs) == 1 else only_least(pairs)
    if pair is None:
        return []
    neurons = of_model(findings.neurons[findings.neurons["condition"] == findings.condition], name)
    between = f"between {pair[0]} and {pair[1]}"
    how = f"agree {between}" if len(pairs) == 1 else f"agree least of {len(pairs)} pairs of conditions {between}"
    return [
        f"The most sensitive {percent(ratio)} of the neurons of {name} ({of_layers(neurons['sensitive'])}) {how}: "
        f"Jaccard index {pairs[pair]:.2f}, where random sets come to {means.loc[pair, 'chance']:.2f}."
    ]


def _models(findings: Findings, ratio: float) -> list[str]:
    if len(findings.models) < 2:
        return []
    said = _orders(findings)
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
        neurons = of_model(findings.neurons[findings.neurons["condition"] == findings.condition], findings.names[0])
        matched = neurons[neurons["layer"].isin(part["layer"])]
        said.append(
            f"Matched by their outputs (mean correlation {part['correlation'].mean():.2f} over {len(part)} "
            f"layer{'s' * (len(part) > 1)}), the most sensitive {percent(ratio)} of the neurons of {findings.names[0]} "
            f"({of_layers(matched['sensitive'])}) and of {second} agree with a Jaccard index of "
            f"{part['jaccard'].mean():.2f}; random sets come to {part['chance'].mean():.2f}."
        )
    return said


def _orders(findings: Findings) -> list[str]:
    """The models in the order of their accuracy and of their sensitivities, where they differ in them."""
    attacked = findings.conditions[findings.conditions["condition"] == findings.condition].set_index("model")
    shares = attacked["accuracy"].to_dict()
    said = []
    if (order := ranked(shares, "{:.1%}", most_first=True)) is not None:
        said.append(f"Accuracy under {findings.condition} on {_images(attacked)} images, from the most: {order}.")
    elif any(shares.values()):
        share = counted(next(iter(shares.values())), int(attacked["images"].iloc[0]))
        said.append(f"Under {findings.condition} all {len(shares)} models classify {share} images right.")
    for measure in ("absolute", "relative"):
        values = findings.models.set_index("model")[measure].dropna().to_dict()
        if (order := ranked(values, "{:.3g}", most_first=False)) is not None:
            said.append(f"Mean {measure} sensitivity over layers, from the least: {order}.")
    return said


def _images(rows: pd.DataFrame) -> str:
    return f"{int(rows['images'].iloc[0]):,}"
