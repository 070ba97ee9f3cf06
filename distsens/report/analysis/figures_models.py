"""Figures of how sensitive the layers and neurons of one model or several are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from distsens.analysis import NOISE, Findings
from distsens.report.style import (
    COLOURS,
    MARKERS,
    STYLES,
    Plate,
    drawn,
    grid,
    legend_above,
    name_ticks,
    plain_log,
    shorts,
    some,
)

# In inches: a letter of a class' name, and the width of the cells of its figure.
_LETTER, _CELLS = 0.07, 1.6
_LABELS = {"absolute": "mean |change| of an output", "relative": "mean |change| / mean |output|"}


def model_plates(findings: Findings) -> list[Plate]:
    """Accuracy, layers, distributions, the noise floor, classes, and robustness against sensitivity."""
    plates = [
        Plate(
            "accuracy",
            "What the attack does, and what noise of the same size does",
            drawn(lambda: _accuracy(findings)),
            "Accuracy with Wilson's 95 % interval. Attacked images count as right only if the clean image is right "
            "too. Noise is a random image at the same distance, in the norm of the threat, as the adversarial one.",
        ),
        Plate(
            "layers",
            "Sensitivity of every layer",
            drawn(lambda: _layers(findings)),
            f"Mean over a layer's neurons of their sensitivity under {findings.condition}: absolute, in units of the "
            "layer's output, and relative to the neurons' mean benign output. Only the relative one can be compared "
            "between layers and models, whose outputs differ in scale. Thin dotted lines: the same under random "
            "noise of the same norm.",
        ),
        Plate(
            "distributions",
            "How the neurons of a layer differ",
            drawn(lambda: _distributions(findings)),
            "Relative sensitivity of a layer's neurons: the box spans the middle half with the median, the whiskers "
            "reach from the 5th to the 95th percentile. A logarithmic axis.",
        ),
        Plate(
            "noise",
            "Sensitive to the attack, or to anything?",
            drawn(lambda: _noise(findings)),
            f"Each dot is a neuron: its absolute sensitivity under {findings.condition} against that under random "
            "noise of the same norm. On the line the attack changes it no more than noise does; ten times above, ten "
            "times more. Both axes are logarithmic.",
        ),
    ]  # fmt: skip
    if len(findings.classes):
        plates.append(
            Plate(
                "classes",
                "Sensitivity by class",
                drawn(lambda: _classes(findings)),
                f"Mean absolute sensitivity under {findings.condition} of a layer's neurons over the images of one "
                "class, divided by the layer's mean over all images: above 1, images of the class move the layer "
                "more than others.",
            )
        )
    if len(findings.models) > 1:
        plates.append(
            Plate(
                "robustness",
                "Is a robust model less sensitive?",
                drawn(lambda: _robustness(findings)),
                "Each mark is a model: its accuracy under attack against the mean of its layers' mean sensitivities, "
                "absolute and relative.",
            )
        )
    return plates


def _accuracy(findings: Findings) -> Figure:
    conditions = list(dict.fromkeys(findings.conditions["condition"]))
    names = findings.names
    figure = Figure(figsize=(7.2, 0.9 + 0.34 * len(conditions) * len(names) ** 0.7), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(names)
    bars = {}
    for position, name in enumerate(names):
        rows = findings.conditions[findings.conditions["model"] == name].set_index("condition").loc[conditions]
        places = np.arange(len(conditions)) + (position - (len(names) - 1) / 2) * height
        errors = np.stack([rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]])
        bars[name] = axes.barh(
            places, rows["accuracy"], height * 0.92, color=COLOURS[position % len(COLOURS)], xerr=errors,
            ecolor="#777777", error_kw={"capsize": 2.5, "elinewidth": 1.2},
        )  # fmt: skip
    labels = ["clean" if one == "clean" else "random noise" if one == NOISE else one for one in conditions]
    axes.set_yticks(range(len(conditions)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("accuracy")
    axes.grid(axis="y", visible=False)
    _legend(figure, bars)
    return figure


def _layers(findings: Findings) -> Figure:
    figure, axes = grid(2, 2, width=4.6, height=3.3)
    layers = findings.layers[findings.layers["condition"] == findings.condition]
    order = list(dict.fromkeys(layers["layer"]))
    lines = {}
    for one, (measure, floor) in zip(axes, (("absolute", "noise"), ("relative", "noise_relative")), strict=True):
        for position, name in enumerate(findings.names):
            rows = layers[layers["model"] == name]
            places = [order.index(layer) for layer in rows["layer"]]
            colour = COLOURS[position % len(COLOURS)]
            (lines[name],) = one.plot(
                places, rows[measure], STYLES[position // len(COLOURS) % len(STYLES)], color=colour,
                marker=MARKERS[position % len(MARKERS)], markersize=4,
            )  # fmt: skip
            one.plot(places, rows[floor], ":", color=colour, linewidth=1.0)
        name_ticks(one, order)
        one.set_title(f"{measure} sensitivity")
        one.set_ylabel(_LABELS[measure])
        one.set_ylim(bottom=0)
        one.set_xlabel("layer")
    _legend(figure, lines)
    return figure


def _distributions(findings: Findings) -> Figure:
    neurons = findings.neurons[findings.neurons["condition"] == findings.condition]
    layers = some(list(dict.fromkeys(neurons["layer"])), 10)
    figure = Figure(
        figsize=(max(6.5, 1.0 + 0.55 * len(layers) * (1 + 0.5 * len(findings.names))), 3.6), layout="constrained"
    )
    axes = figure.subplots()
    width = 0.8 / len(findings.names)
    for position, name in enumerate(findings.names):
        colour = COLOURS[position % len(COLOURS)]
        values, places = [], []
        for place, layer in enumerate(layers):
            part = neurons.loc[(neurons["model"] == name) & (neurons["layer"] == layer), "relative"]
            if (part > 0).any():
                values.append(part[part > 0].to_numpy())
                places.append(place + (position - (len(findings.names) - 1) / 2) * width)
        axes.boxplot(
            values, positions=places, widths=width * 0.8, whis=(5, 95), showfliers=False, patch_artist=True,
            boxprops={"facecolor": colour, "edgecolor": colour, "alpha": 0.75}, medianprops={"color": "#222222"},
            whiskerprops={"color": colour}, capprops={"color": colour}, manage_ticks=False,
        )  # fmt: skip
    name_ticks(axes, layers)
    axes.set_yscale("log")
    plain_log(axes.yaxis, *axes.get_ylim())
    axes.set_ylabel("relative sensitivity")
    axes.set_xlabel("layer")
    axes.grid(axis="x", visible=False)
    if len(findings.names) > 1:
        marks = [Patch(color=COLOURS[i % len(COLOURS)]) for i in range(len(findings.names))]
        legend_above(figure, marks, findings.names)
    return figure


def _noise(findings: Findings) -> Figure:
    neurons = findings.neurons[findings.neurons["condition"] == findings.condition]
    figure, axes = grid(len(findings.names), 3, width=3.3, height=3.1)
    layers = list(dict.fromkeys(neurons["layer"]))
    places = dict(zip(layers, np.linspace(0.0, 0.92, len(layers)), strict=True))
    ends = neurons.loc[(neurons["noise"] > 0) & (neurons["absolute"] > 0), ["noise", "absolute"]].to_numpy()
    low, high = (float(ends.min()) / 1.5, float(ends.max()) * 1.5) if len(ends) else (0.1, 1.0)
    for one, name, title in zip(axes, findings.names, shorts(findings.names, 26), strict=True):
        rows = neurons[neurons["model"] == name]
        dots = one.scatter(
            rows["noise"], rows["absolute"], c=rows["layer"].map(places), cmap="viridis", vmin=0, vmax=1, s=9,
            alpha=0.8, linewidths=0, rasterized=len(rows) > 2000,
        )  # fmt: skip
        one.plot([low, high], [low, high], color="#777777", linewidth=1)
        one.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), title=title)
        for axis in (one.xaxis, one.yaxis):
            plain_log(axis, low, high)
        one.set_xlabel("sensitivity to noise")
        one.set_ylabel(f"sensitivity to {findings.condition}")
    bar = figure.colorbar(dots, ax=axes, shrink=0.9)
    shown = some(layers, 8)
    bar.set_ticks([places[layer] for layer in shown], labels=shorts(shown))
    bar.ax.invert_yaxis()
    bar.outline.set_visible(False)
    return figure


def _classes(findings: Findings) -> Figure:
    means = findings.classes.groupby(["model", "label", "layer"], sort=False)["absolute"].mean().reset_index()
    overall = findings.layers[findings.layers["condition"] == findings.condition][["model", "layer", "absolute"]]
    means = means.merge(overall, on=["model", "layer"], suffixes=("", "_mean"))
    means["ratio"] = means["absolute"] / means["absolute_mean"].where(means["absolute_mean"] > 0)
    limit = float(max(0.1, (means["ratio"] - 1).abs().quantile(0.99)))
    labels = some(list(dict.fromkeys(means["label"])), 20)
    words = shorts([str(label) for label in labels], 20)
    beside = _LETTER * max(map(len, words))
    figure, axes = grid(len(findings.names), 3, width=2.5 + beside, height=0.9 + 0.19 * len(labels))
    for one, name, title in zip(axes, findings.names, shorts(findings.names, 26), strict=True):
        table = means[means["model"] == name].pivot_table(index="label", columns="layer", values="ratio", sort=False)
        layers = list(table.columns)
        shown = one.imshow(table.loc[labels], aspect="auto", cmap="PuOr_r", vmin=1 - limit, vmax=1 + limit)
        one.set_yticks(range(len(labels)), words, fontsize=8)
        name_ticks(one, layers, _CELLS)
        one.grid(visible=False)
        one.set(title=title, xlabel="layer", ylabel="class")
    figure.colorbar(shown, ax=axes, shrink=0.9, label="sensitivity / mean")
    return figure


def _robustness(findings: Findings) -> Figure:
    figure, axes = grid(2, 2, width=3.8, height=3.0)
    marks = {}
    for one, measure in zip(axes, ("absolute", "relative"), strict=True):
        for position, row in enumerate(findings.models.to_dict("records")):
            (marks[row["model"]],) = one.plot(
                row[measure], row["robust"], MARKERS[position % len(MARKERS)], color=COLOURS[position % len(COLOURS)],
                markersize=8, linestyle="none",
            )  # fmt: skip
        one.set_xlim(left=0, right=float(findings.models[measure].max()) * 1.1)
        one.set_ylim(0, min(1.05, float(findings.models["robust"].max()) * 1.2 + 0.02))
        one.yaxis.set_major_formatter(PercentFormatter(1.0))
        one.set_xlabel(f"{measure} sensitivity, mean over layers")
        one.set_ylabel(f"accuracy under {findings.condition}")
    _legend(figure, marks)
    return figure


def _legend(figure: Figure, marks: Mapping[str, Any]) -> None:
    """By model what stands for it; what matplotlib collects itself lacks those whose names begin with ``_``."""
    if len(marks) > 1:
        legend_above(figure, list(marks.values()), list(marks))


def of_model(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one model; none of an empty table."""
    return table[table["model"] == name] if len(table) else table
