"""The sortable table of neurons."""

from __future__ import annotations

import math
from typing import Any

from distsens.analysis import Findings
from distsens.report.document import escaped
from distsens.report.style import bare

_ROWS = 600
_COLUMNS = {
    "model": ("model", None),
    "layer": ("layer", None),
    "neuron": ("neuron", "{:d}"),
    "rank": ("rank", "{:d}"),
    "absolute": ("absolute", "{:.4g}"),
    "absolute_error": ("± error", "{:.2g}"),
    "relative": ("relative", "{:.3g}"),
    "relative_error": ("± error", "{:.2g}"),
    "noise": ("under noise", "{:.3g}"),
    "over_noise": ("over noise", "{:.2f}"),
    "contribution": ("contribution", "{:+.3g}"),
    "part": ("part", "{:+.1%}"),
}


def neuron_rows(findings: Findings) -> tuple[str, int, int]:
    """The table of the most sensitive neurons as HTML, how many rows it has, and how many neurons there are.

    All neurons of a small network; of a larger one those that rank first in each layer of each model.
    """
    neurons = findings.neurons[findings.neurons["condition"] == findings.condition]
    shown = neurons.sort_values("rank", kind="stable").head(_ROWS)
    shown = shown.sort_values(["rank", "absolute"], ascending=[True, False], kind="stable")
    columns = {name: column for name, column in _COLUMNS.items() if name in shown and shown[name].notna().any()}
    if len(findings.names) == 1:
        columns.pop("model")
    head = "".join(f'<th scope="col"><button type="button">{title}</button></th>' for title, _ in columns.values())
    body = "".join(
        "<tr>" + "".join(_cell(row[name], form) for name, (_, form) in columns.items()) + "</tr>"
        for row in shown.to_dict("records")
    )
    return f'<table id="neurons"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>', len(shown), len(neurons)


def _cell(value: Any, form: str | None) -> str:
    if form is None:
        return f'<th scope="row">{escaped(bare(str(value)))}</th>'
    if isinstance(value, float) and not math.isfinite(value):
        return '<td data-value=""></td>'
    return f'<td data-value="{value:.9g}">{form.format(value)}</td>'


def model_rows(findings: Findings) -> str:
    """The models side by side, as HTML."""
    columns = {
        "clean": "clean", "robust": f"under {findings.condition}", "noisy": "under noise", "absolute": "absolute",
        "relative": "relative", "over_noise": "over noise",
    }  # fmt: skip
    head = "".join(f'<th scope="col">{escaped(title)}</th>' for title in ("model", *columns.values()))
    body = []
    for row in findings.models.to_dict("records"):
        cells = "".join(
            f"<td>{row[name]:.1%}</td>" if name in ("clean", "robust", "noisy") else f"<td>{row[name]:.3g}</td>"
            for name in columns
        )
        body.append(f'<tr><th scope="row">{escaped(str(row["model"]))}</th>{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
