"""Figures of sensitive neurons over a training, and of their agreement across conditions and models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from distsens.analysis import Findings, epochs_jaccard
from distsens.report.analysis.figures_models import of_model
from distsens.report.style import (
    COLOURS,
    SEQUENTIAL,
    STYLES,
    Plate,
    drawn,
    grid,
    legend_above,
    name_ticks,
    shorts,
    some,
    titles,
)

_DRAWN_NEURONS = 64


def time_plates(findings: Findings, name: str) -> list[Plate]:
    """Of one model's training: heat maps, Jaccard between epochs, births and deaths; none without its history."""
    history = of_model(findings.history, name)
    if len(history) == 0 or history["epoch"].nunique() < 2:
        return []
    label = f"-{findings.names.index(name) + 1}"
    whose = f"{name}: " if len(findings.names) > 1 else ""
    turnover, epochs = of_model(findings.turnover, name), of_model(findings.epochs, name)
    plates = [
        Plate(
            f"epochs{label}",
            f"{whose}Every neuron over the training",
            drawn(lambda: _heat_maps(history)),
            f"{name}: relative sensitivity on validation of each neuron (a row) after each epoch, as the training "
            "measured it. Rows are sorted by the last epoch, the most sensitive on top; of wide layers "
            f"{_DRAWN_NEURONS} rows are drawn, evenly. Epoch 0 is the untrained network. A layer's colours reach to "
            "the 98th percentile of its values.",
        ),
        Plate(
            f"jaccard{label}",
            f"{whose}Are they the same neurons?",
            drawn(lambda: _jaccard(history)),
            f"{name}: Jaccard index of the sensitive neurons of every two epochs (common ones over all of both), 1 if "
            "they are the same.",
        ),
        Plate(
            f"turnover{label}",
            f"{whose}Births and deaths of sensitive neurons",
            drawn(lambda: _turnover(turnover)),
            f"{name}: the part of a layer's sensitive neurons that were not sensitive an epoch before (births; as the "
            "set keeps its size, as many die), and the Jaccard index with the last epoch. Dotted: random sets.",
        ),
    ]  # fmt: skip
    if len(epochs) > 1:
        plates.append(
            Plate(
                f"training{label}",
                f"{whose}Sensitivity and robust accuracy over the epochs",
                drawn(lambda: _robust(history, epochs)),
                f"{name}: robust accuracy on validation against the mean over layers of the mean sensitivity, one dot "
                "an epoch, joined in their order; epochs of one run are not independent of one another.",
            )
        )
    return plates


def agreement_plates(findings: Findings) -> list[Plate]:
    """Across the conditions of each model, and between models; none where there is but one of either."""
    plates = []
    if len(findings.condition_agreement):
        plates.append(
            Plate(
                "conditions",
                "Do other attacks and radii find the same neurons?",
                drawn(lambda: _conditions(findings)),
                "Jaccard index of the sensitive neurons under every two conditions, mean over layers; in brackets "
                "Spearman's rank correlation over all neurons. Two random sets of these sizes come to "
                f"{findings.condition_agreement['chance'].mean():.2f}.",
            )
        )
    if len(findings.model_agreement):
        plates.append(
            Plate(
                "models",
                "Do other models find the same neurons sensitive?",
                drawn(lambda: _models(findings)),
                f"Jaccard index of the sensitive neurons of {findings.names[0]} and of another model, whose neurons "
                "were matched to it by the permutation with the largest sum of correlations of their benign outputs "
                "(linear assignment). Dotted: random sets.",
            )
        )
    return plates


def _heat_maps(history: pd.DataFrame) -> Figure:
    layers = some(list(dict.fromkeys(history["layer"])), 12)
    figure, axes = grid(len(layers), 4, width=2.6, height=2.6)
    for one, layer, title in zip(axes, layers, titles(layers, 18), strict=True):
        table = history[history["layer"] == layer].pivot_table(index="neuron", columns="epoch", values="relative")
        table = table.sort_values(table.columns[-1], ascending=False)
        rows = np.unique(np.linspace(0, len(table) - 1, min(_DRAWN_NEURONS, len(table))).round().astype(int))
        values = table.iloc[rows].to_numpy()
        first, last = table.columns[0], table.columns[-1]
        shown = one.imshow(
            values, aspect="auto", cmap=SEQUENTIAL, vmin=0, vmax=float(np.quantile(values, 0.98)) or 1.0,
            extent=(first - 0.5, last + 0.5, len(table), 0), interpolation="nearest",
        )  # fmt: skip
        one.set_title(f"{title} ({len(table)})")
        one.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        one.grid(visible=False)
        figure.colorbar(shown, ax=one, shrink=0.9).outline.set_visible(False)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("neurons, sorted by the last epoch", fontsize=10)
    return figure


def _jaccard(history: pd.DataFrame) -> Figure:
    tables = epochs_jaccard(history)
    layers = some(list(tables), 12)
    figure, axes = grid(len(layers), 4, width=2.3, height=2.2)
    for one, layer, title in zip(axes, layers, titles(layers, 18), strict=True):
        table = tables[layer]
        first, last = table.columns[0] - 0.5, table.columns[-1] + 0.5
        shown = one.imshow(table, cmap=SEQUENTIAL, vmin=0, vmax=1, extent=(first, last, last, first))
        one.set_title(title)
        one.grid(visible=False)
        for axis in (one.xaxis, one.yaxis):
            axis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("epoch", fontsize=10)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="Jaccard index")
    return figure


def _turnover(turnover: pd.DataFrame) -> Figure:
    layers = some(list(dict.fromkeys(turnover["layer"])), 12)
    figure, axes = grid(2, 2, width=4.0, height=3.1)
    lines = []
    for position, layer in enumerate(layers):
        rows = turnover[turnover["layer"] == layer]
        style: Any = {
            "color": COLOURS[position % len(COLOURS)],
            "linestyle": STYLES[position // len(COLOURS) % len(STYLES)],
            "marker": "o",
            "markersize": 3,
        }
        lines += axes[0].plot(rows["epoch"], rows["born"] / (rows["born"] + rows["kept"]), **style)
        axes[1].plot(rows["epoch"], rows["since_last"], **style)
    axes[1].axhline(float(turnover["chance"].mean()), color="#777777", linestyle=":")
    for one, title in zip(axes, ("born since the epoch before", "Jaccard index with the last epoch"), strict=True):
        one.set_title(title)
        one.set_xlabel("epoch")
        one.set_ylim(-0.02, 1.02)
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[0].set_ylabel("part of the sensitive neurons")
    axes[1].set_ylabel("Jaccard index")
    figure.legend(lines, shorts(layers), loc="outside right center", title="layer")
    return figure


def _robust(history: pd.DataFrame, epochs: pd.DataFrame) -> Figure:
    figure, axes = grid(2, 2, width=3.8, height=3.0)
    means = history.groupby(["epoch", "layer"])[["absolute", "relative"]].mean().groupby("epoch").mean()
    joined = means.join(epochs.set_index("epoch")["robust"]).dropna()
    for one, measure in zip(axes, ("absolute", "relative"), strict=True):
        one.plot(joined[measure], joined["robust"], color="#777777", linewidth=1)
        dots = one.scatter(joined[measure], joined["robust"], c=joined.index, cmap=SEQUENTIAL, zorder=3, s=36)
        one.set_xlabel(f"{measure} sensitivity, mean over layers")
        one.set_ylabel("robust accuracy on validation")
        one.yaxis.set_major_formatter(PercentFormatter(1.0))
        one.set_xlim(left=0)
        one.set_ylim(0, min(1.05, float(joined["robust"].max()) * 1.15 + 0.02))
    bar = figure.colorbar(dots, ax=axes, label="epoch")
    bar.locator = MaxNLocator(5, integer=True)
    bar.update_ticks()
    return figure


def _conditions(findings: Findings) -> Figure:
    table = findings.condition_agreement
    conditions = len({*table["first"], *table["second"]})
    figure, axes = grid(len(findings.names), 3, width=max(3.4, 1.4 + 0.55 * conditions), height=1.2 + 0.5 * conditions)
    for one, name, title in zip(axes, findings.names, shorts(findings.names, 26), strict=True):
        rows = of_model(table, name)
        names = list(dict.fromkeys([*rows["first"], *rows["second"]]))
        values, words = np.eye(len(names)), [["" for _ in names] for _ in names]
        for (first, second), part in rows.groupby(["first", "second"], sort=False):
            i, j = names.index(first), names.index(second)
            for a, b in ((i, j), (j, i)):
                values[a, b] = part["jaccard"].mean()
                words[a][b] = f"{part['jaccard'].mean():.2f}\n({part['rank_correlation'].mean():.2f})"
        one.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=1)
        for i in range(len(names)):
            for j in range(len(names)):
                one.text(
                    j, i, words[i][j], ha="center", va="center", fontsize=8, color="w" if values[i, j] < 0.6 else "k"
                )
        one.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        one.set_yticks(range(len(names)), names)
        one.grid(visible=False)
        one.set_title(title)
    return figure


def _models(findings: Findings) -> Figure:
    table = findings.model_agreement
    layers = list(dict.fromkeys(table["layer"]))
    figure = Figure(figsize=(max(5.5, 1.5 + 0.5 * len(layers)), 3.3), layout="constrained")
    axes = figure.subplots()
    for position, (name, rows) in enumerate(table.groupby("second", sort=False)):
        places = [layers.index(layer) for layer in rows["layer"]]
        colour = COLOURS[(position + 1) % len(COLOURS)]
        axes.plot(places, rows["jaccard"], "o-", color=colour, label=f"with {name}")
    chance = table.groupby("layer", sort=False)["chance"].mean().loc[layers]
    axes.plot(range(len(layers)), chance, ":", color="#777777", label="random sets")
    name_ticks(axes, layers)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("layer")
    axes.set_ylabel("Jaccard index")
    legend_above(figure, *axes.get_legend_handles_labels())
    return figure
