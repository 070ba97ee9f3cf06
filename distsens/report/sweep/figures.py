"""Figures of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from distsens.report.style import COLOURS, SEQUENTIAL, Plate, drawn, name_ticks, plain_log, shorts
from distsens.report.sweep.outcome import Outcome
from distsens.report.sweep.state import TrialState, short_names, shown
from distsens.search import Choice, Grid, Integers, LogUniform, Space, Uniform

# Beside the range, as a part of it, so that no point is cut.
_ROOM = 0.04
_STAR: Any = {"marker": "*", "s": 190, "facecolor": COLOURS[1], "edgecolor": "white", "linewidth": 0.8, "zorder": 5}


def sweep_plates(
    trials: Sequence[TrialState], outcome: Outcome, space: Space, rungs: int, champion: str | None
) -> list[Plate]:
    """The front, the space with what was found in it, and what each field matters."""
    plates = [
        Plate(
            "front",
            "Clean and robust accuracy of the trials",
            drawn(lambda: _front(trials, outcome, rungs, champion)),
            f"Each point is a trial on validation, in its best epoch, at the highest of {rungs} rungs that it did "
            "(filled: the last). The line is the Pareto front of those that finished; its hypervolume, the area that "
            f"it dominates above no accuracy at all, is {outcome.hypervolume:.3f}. The star is the champion.",
        ),
        Plate(
            "space",
            "Where the trials were drawn, and what they reached",
            drawn(lambda: _space(trials, space, champion)),
            "Each point is a trial: colour is its robust accuracy on validation at the highest rung that it did, size "
            "is that rung, a cross a trial that failed. The star is the champion. Accuracies of different rungs are of "
            "trainings of different length.",
        ),
    ]
    if outcome.importance:
        plates.append(
            Plate(
                "importance",
                "Which field made the difference",
                drawn(lambda: _importance(outcome.importance)),
                f"Share of the variance of the scores at rung {outcome.importance_rung} that each field explains "
                "(fANOVA by a random forest, Hutter et al., ICML 2014).",
            )
        )
    return plates


def _front(trials: Sequence[TrialState], outcome: Outcome, rungs: int, champion: str | None) -> Figure:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for rung in range(1, rungs + 1):
        points = [
            point for one in trials if one.status != "failed" and one.rung == rung and (point := one.point) is not None
        ]
        if points:
            colour = COLOURS[(rungs - rung) % len(COLOURS)]
            axes.scatter(
                [point.clean for point in points],
                [point.robust for point in points],
                s=36,
                facecolor=colour if rung == rungs else "none",
                edgecolor=colour,
                label="last rung" if rung == rungs and rungs > 1 else f"rung {rung}" if rungs > 1 else "trials",
            )
    front = [point for one in outcome.front if (point := one.point) is not None]
    if front:
        axes.plot([p.clean for p in front], [p.robust for p in front], color=COLOURS[0], linewidth=1.2, label="front")
    _mark(axes, trials, champion, lambda one: None if one.point is None else (one.point.clean, one.point.robust))
    axes.set_xlabel("clean accuracy on validation")
    axes.set_ylabel("robust accuracy on validation")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="best")
    return figure


def _space(trials: Sequence[TrialState], space: Space, champion: str | None) -> Figure:
    fields = list(space)
    names = short_names(fields)
    pairs = [(0, 1)] if len(fields) == 2 else [(position, None) for position in range(len(fields))]
    columns = min(len(pairs), 2)
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(7.2, 4.2) if len(pairs) == 1 else (9.0, 3.4 * rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    robust = [point.robust for one in trials if (point := one.point) is not None]
    norm = Normalize(min(robust, default=0.0), max(robust, default=1.0))
    for axes, (first, second) in zip(grid, pairs, strict=False):
        _panel(axes, trials, space, fields[first], None if second is None else fields[second], norm, champion, names)
    for axes in grid[len(pairs) :]:
        axes.set_visible(False)
    bar = figure.colorbar(mpl.cm.ScalarMappable(norm, SEQUENTIAL), ax=list(grid), format=PercentFormatter(1.0))
    bar.set_label("robust accuracy")
    return figure


def _panel(
    axes: Axes,
    trials: Sequence[TrialState],
    space: Space,
    across: str,
    up: str | None,
    norm: Normalize,
    champion: str | None,
    names: Mapping[str, str],
) -> None:
    def place(one: TrialState) -> tuple[float, float] | None:
        point = one.point
        x = _position(space, across, one.values[across])
        if up is not None:
            return x, _position(space, up, one.values[up])
        return None if point is None else (x, point.robust)

    failed = [spot for one in trials if one.status == "failed" and (spot := place(one)) is not None]
    done = [
        (spot, one)
        for one in trials
        if one.status != "failed" and one.point is not None and (spot := place(one)) is not None
    ]
    if done:
        axes.scatter(
            [spot[0] for spot, _ in done],
            [spot[1] for spot, _ in done],
            c=[one.point.robust for _, one in done if one.point is not None],
            s=[28 + 34 * (one.rung - 1) for _, one in done],
            cmap=SEQUENTIAL,
            norm=norm,
            edgecolor="#555555",
            linewidth=0.5,
        )
    axes.scatter([x for x, _ in failed], [y for _, y in failed], marker="x", color="#777777")
    _mark(axes, trials, champion, place)
    _scale(axes, "x", space, across, names)
    if up is not None:
        _scale(axes, "y", space, up, names)
    else:
        axes.set_ylabel("robust accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _mark(axes: Axes, trials: Sequence[TrialState], champion: str | None, place: Any) -> None:
    for one in trials:
        if one.trial == champion and (spot := place(one)) is not None:
            axes.scatter([spot[0]], [spot[1]], **_STAR)


def _position(space: Space, field: str, value: Any) -> float:
    """Where a value stands on its axis: choices have places of their own, in the order in which they are given."""
    one = space[field]
    if isinstance(one, Choice | Grid):
        return [shown(other) for other in one.values].index(shown(value))
    return float(value)


def _scale(axes: Axes, which: str, space: Space, field: str, names: Mapping[str, str]) -> None:
    one = space[field]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_label_text(names[field] + (" (log scale)" if isinstance(one, LogUniform) else ""))
    limits = axes.set_xlim if which == "x" else axes.set_ylim
    if isinstance(one, LogUniform):
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        plain_log(axis, one.low, one.high)
        room = (one.high / one.low) ** _ROOM
        limits(one.low / room, one.high * room)
    if isinstance(one, Uniform | Integers):
        axis.set_major_locator(MaxNLocator(4, integer=isinstance(one, Integers)))
        room = (one.high - one.low) * _ROOM
        limits(one.low - room, one.high + room)
    if isinstance(one, Choice | Grid):
        values = [shown(value) for value in one.values]
        if which == "x":
            name_ticks(axes, values)
        else:
            axis.set_ticks(range(len(values)), shorts(values))


def _importance(shares: Mapping[str, float]) -> Figure:
    names = short_names(shares)
    figure = Figure(figsize=(6.4, 0.8 + 0.45 * len(shares)), layout="constrained")
    axes = figure.subplots()
    fields = list(shares)[::-1]
    axes.barh(range(len(fields)), [shares[field] for field in fields], color=COLOURS[0], height=0.6)
    axes.set_yticks(range(len(fields)), [names[field] for field in fields])
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("share of the variance of the scores")
    return figure
