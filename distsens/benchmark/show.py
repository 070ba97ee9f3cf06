"""A benchmark's findings for the eye: a table and a figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Table

from distsens.benchmark.finding import Finding, Report
from distsens.console import plain
from distsens.errors import printable

_MET, _MISSED, _NONE = "#009E73", "#D55E00", "#0072B2"
_VERDICTS = {True: "met", False: "missed", None: ""}


def benchmark_table(report: Report) -> Table:
    """One row a finding."""
    table = Table(title=plain(_environment_line(report)), box=SIMPLE, pad_edge=False)
    for name in ("", "median", "quartiles", "target", ""):
        table.add_column(name, justify="left" if name in ("", "target") else "right")
    for finding in report.findings:
        spread, style = finding.spread, {True: "green", False: "red", None: ""}[finding.met]
        quartiles = "" if spread.low == spread.high else f"{_number(spread.low)} to {_number(spread.high)}"
        table.add_row(
            plain(finding.title),
            f"{_number(spread.median)} {finding.unit}",
            quartiles,
            _target(finding),
            plain(_VERDICTS[finding.met], style),
        )
    return table


def benchmark_figure(report: Report) -> Figure:
    """Speed-ups and costs as bars with quartiles, each with its target as a line."""
    with rc_context({"text.parse_math": False, "text.usetex": False}):  # a model may be called $x$
        return _figure(report)


def _figure(report: Report) -> Figure:
    units = [("x", "times as fast"), ("%", "time added, %")]
    groups = [(label, [one for one in report.findings if one.unit == unit]) for unit, label in units]
    groups = [(label, findings) for label, findings in groups if findings]
    rows = [len(findings) for _, findings in groups] or [1]
    figure = Figure(figsize=(10, 1.4 + 0.45 * sum(rows)), layout="constrained")
    figure.suptitle(_environment_line(report), fontsize="medium")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axes, (label, findings) in zip(panels, groups, strict=False):
        _bars(axes, findings)
        axes.set_xlabel(label)
    return figure


def _bars(axes: Axes, findings: Sequence[Finding]) -> None:
    for row, finding in enumerate(findings):
        spread = finding.spread
        whiskers = [[spread.median - spread.low], [spread.high - spread.median]]
        axes.barh(
            row,
            spread.median,
            xerr=whiskers,
            height=0.6,
            color={True: _MET, False: _MISSED, None: _NONE}[finding.met],
            error_kw={"ecolor": "0.3", "capsize": 3},
        )
        if finding.target is not None:
            axes.plot([finding.target] * 2, [row - 0.42, row + 0.42], color="black", linewidth=2)
    axes.set_yticks(range(len(findings)), [printable(finding.title.strip()) for finding in findings], fontsize="small")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)


def _environment_line(report: Report) -> str:
    machine = report.environment["gpu"] or f"{report.environment['cpu']}, {report.environment['threads']} threads"
    return printable(f"{machine}, torch {report.environment['torch']}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _target(finding: Finding) -> str:
    if finding.target is None:
        return ""
    return f"{'>=' if finding.at_least else '<='} {finding.target:g}"
