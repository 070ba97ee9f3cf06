"""Figures of a training run."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from distsens.report.style import drawn, shorts, title_over
from distsens.training import EpochRecord

# Okabe and Ito's palette, which colour-blind readers can tell apart; the yellow is too faint on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", ":", "-.")
_ROOM_FOR_A_WORD = 16  # points, between a panel and its title


def training_figure(history: Sequence[EpochRecord], best_epoch: int, title: str) -> Figure:
    """Accuracy, and mean sensitivity of every layer, absolute and relative, on validation over epochs."""
    return drawn(lambda: _figure(history, best_epoch, title))


def _figure(history: Sequence[EpochRecord], best_epoch: int, title: str) -> Figure:
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    accuracy, absolute, relative = figure.subplots(1, 3)
    title_over(figure, title)

    lines = {"clean": "clean", "robust": "robust (validation attack)", "training_attack": "training attack"}
    for number, (name, label) in enumerate(lines.items()):
        metric = f"validation/{name}_accuracy"
        measured = [record for record in history if metric in record.metrics]
        if not measured:
            continue
        epochs, values = zip(*((record.epoch, record.metrics[metric]) for record in measured), strict=True)
        accuracy.plot(epochs, values, color=_COLOURS[number], label=label, marker="o", markersize=3)
    accuracy.set_ylim(0, 1.02)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy.set_ylabel("accuracy")
    # Below the panel: inside, some run's curves would cross it.
    accuracy.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize="small")

    lines_of_layers = _layers(absolute, history, "absolute")
    absolute.set_ylabel("mean |change| of a neuron's output")
    _layers(relative, history, "relative")
    relative.set_ylabel("mean |change| / mean |benign output|")
    named = list(lines_of_layers)[:: max(1, -(-len(lines_of_layers) // 12))]  # of a deep network some, evenly
    figure.legend(
        [lines_of_layers[layer] for layer in named],
        shorts(named, 28),
        loc="outside right center",
        frameon=False,
        fontsize="small",
        title="layer",
    )

    for axes, name in ((accuracy, "accuracy"), (absolute, "absolute sensitivity"), (relative, "relative sensitivity")):
        axes.set_title(name, fontsize="medium", pad=_ROOM_FOR_A_WORD)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(history) == 1:  # between whole numbers there would be ticks
            axes.set_xlim(history[0].epoch - 1, history[0].epoch + 1)
        axes.axvline(best_epoch, color="0.6", linewidth=1, zorder=0)
        axes.annotate(
            "best", (best_epoch, 1.01), xycoords=("data", "axes fraction"), ha="center", color="0.4", fontsize="small"
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure


def _layers(axes: Axes, history: Sequence[EpochRecord], measure: str) -> dict[str, Line2D]:
    """The lines by layer: matplotlib itself leaves those out of a legend whose names begin with ``_``."""
    prefix = f"sensitivity/{measure}/"
    names = [name.removeprefix(prefix) for name in history[0].metrics if name.startswith(prefix)]
    lines = {}
    for number, layer in enumerate(names):
        (lines[layer],) = axes.plot(
            [record.epoch for record in history],
            [record.metrics[prefix + layer] for record in history],
            color=_COLOURS[number % len(_COLOURS)],
            linestyle=_STYLES[number // len(_COLOURS) % len(_STYLES)],
            label=layer,
        )
    axes.set_ylim(bottom=0)
    return lines
