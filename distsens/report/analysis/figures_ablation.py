"""Figures of whether sensitive neurons decide: ablation, patching, contributions."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

from distsens.analysis import Findings
from distsens.report.analysis.figures_models import of_model
from distsens.report.style import COLOURS, SELECTIONS, STYLES, Plate, drawn, grid, legend_above, shorts, some, titles

_NAMES = {"top": "most sensitive", "random": "random", "bottom": "least sensitive"}
_WHAT = {"benign": "their benign value", "zero": "zero", "mean": "their mean benign output"}


def ablation_plates(findings: Findings, name: str) -> list[Plate]:
    """Of one model: ablation by each replacement, neurons to flip, contributions; none if nothing was intervened on."""
    curves = of_model(findings.ablation_curves, name)
    if len(curves) == 0:
        return []
    label = f"-{findings.names.index(name) + 1}"
    whose = f"{name}: " if len(findings.names) > 1 else ""
    whole = of_model(findings.interventions, name).iloc[0]
    ends = (float(whole["right"]), float(whole["attacked"]))
    images, draws = int(curves["images"].iloc[0]), int(curves["draws"].max())
    plates = [
        Plate(
            f"ablation-{replacement}{label}",
            f"{whose}Accuracy under attack when neurons are set to {_WHAT[replacement]}",
            drawn(lambda part=part: _ablation(part, ends)),  # type: ignore[misc]
            f"{name}: accuracy on {images} adversarial images against the number of a layer's neurons that are set to "
            f"{_WHAT[replacement]}, chosen by sensitivity from the top, from the bottom, or at random. Bands: "
            f"Wilson's 95 % interval over images; for random sets the mean of {draws} draws, and where 95 % of such "
            "sets lie. Dashed: accuracy on the benign images, and on the adversarial ones with no neuron set.",
        )
        for replacement, part in curves.groupby("replacement", sort=False)
    ]  # fmt: skip
    flips = of_model(findings.flip_curves, name)
    if len(flips):
        plates.append(
            Plate(
                f"flips{label}",
                f"{whose}How many neurons it takes to flip the prediction",
                drawn(lambda: _flips(flips)),
                f"{name}: of the {int(flips['images'].iloc[0])} images whose prediction the attack changes, the part "
                "whose prediction changes already when at most so many neurons of one layer say what they say to the "
                "adversarial image, and everything else is as on the benign one. Bands as above; a logarithmic axis.",
            )
        )
    neurons = of_model(findings.neurons[findings.neurons["condition"] == findings.condition], name)
    if "contribution" in neurons and neurons["contribution"].notna().any():
        gaps = of_model(findings.completeness, name)
        plates.append(
            Plate(
                f"contributions{label}",
                f"{whose}How much of the logit change sensitive neurons carry",
                drawn(lambda: _contributions(neurons)),
                f"{name}: the part of the change of the margin (logit of the wrong class less that of the label) that "
                "the most sensitive neurons of a layer contribute, by gradient times difference averaged on the way "
                "from the benign to the adversarial output. Along the thin line all neurons would contribute "
                f"equally. The contributions' sum misses the real change by {gaps['gap'].min():.1%} to "
                f"{gaps['gap'].max():.1%}, according to layer; of the whole change {gaps['through'].min():.0%} to "
                f"{gaps['through'].max():.0%} passes through a layer, and parts are of that.",
            )
        )
    return plates


def _ablation(curves: pd.DataFrame, ends: tuple[float, float]) -> Figure:
    layers = some(list(dict.fromkeys(curves["layer"])), 12)
    figure, axes = grid(len(layers), 4, width=2.6, height=2.2)
    for one, layer, title in zip(axes, layers, titles(layers), strict=True):
        for selection, colour in SELECTIONS.items():
            rows = curves[(curves["layer"] == layer) & (curves["selection"] == selection)].sort_values("neurons")
            one.plot(rows["neurons"], rows["accuracy"], "o-", color=colour, markersize=3, label=_NAMES[selection])
            one.fill_between(rows["neurons"], rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0)
        for end in ends:
            one.axhline(end, color="#777777", linewidth=1, linestyle="--")
        one.set_title(title)
        one.set_ylim(-0.02, 1.02)
        one.set_xlim(left=0)
        one.yaxis.set_major_formatter(PercentFormatter(1.0))
        one.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supxlabel("neurons set", fontsize=10)
    figure.supylabel("accuracy under attack", fontsize=10)
    legend_above(figure, *axes[0].get_legend_handles_labels())
    return figure


def _flips(curves: pd.DataFrame) -> Figure:
    layers = some(list(dict.fromkeys(curves["layer"])), 12)
    figure, axes = grid(len(layers), 4, width=2.6, height=2.2)
    for one, layer, title in zip(axes, layers, titles(layers), strict=True):
        part = curves[curves["layer"] == layer]
        for selection, colour in SELECTIONS.items():
            rows = part[part["selection"] == selection].sort_values("neurons")
            one.plot(rows["neurons"], rows["share"], "o-", color=colour, markersize=3, label=_NAMES[selection])
            one.fill_between(rows["neurons"], rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0)
        one.set_title(title)
        one.set_xscale("log", base=2)
        one.set_xlim(0.9, int(part["layer_neurons"].iloc[0]) * 1.15)
        one.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        one.xaxis.set_major_locator(_doublings(int(part["layer_neurons"].iloc[0])))
        one.set_ylim(-0.02, 1.02)
        one.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.supxlabel("neurons with their adversarial value", fontsize=10)
    figure.supylabel("images flipped", fontsize=10)
    legend_above(figure, *axes[0].get_legend_handles_labels())
    return figure


def _doublings(neurons: int) -> FixedLocator:
    powers = [2**power for power in range(neurons.bit_length())]
    return FixedLocator(powers[:: -(-len(powers) // 5)])


def _contributions(neurons: pd.DataFrame) -> Figure:
    layers = some(list(dict.fromkeys(neurons.loc[neurons["contribution"].notna(), "layer"])), 12)
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    lines = []
    for position, layer in enumerate(layers):
        parts = neurons[neurons["layer"] == layer].sort_values("rank")["part"].to_numpy()
        along = np.arange(len(parts) + 1) / len(parts)
        lines += axes.plot(
            along, np.concatenate([[0.0], parts.cumsum()]), color=COLOURS[position % len(COLOURS)],
            linestyle=STYLES[position // len(COLOURS) % len(STYLES)],
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], color="#777777", linewidth=1)
    axes.set_xlim(0, 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("neurons of the layer, the most sensitive first")
    axes.set_ylabel("part of the change of the margin")
    axes.legend(lines, shorts(layers), loc="center left", bbox_to_anchor=(1.01, 0.5), title="layer")
    return figure
