"""A sweep's trials become its report: the page, figures, tables, and the numbers for MLflow."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from distsens.errors import printable
from distsens.report.csv_table import csv_table
from distsens.report.sweep.figures import sweep_plates
from distsens.report.sweep.outcome import Outcome
from distsens.report.sweep.page import sweep_page, sweep_sentences
from distsens.report.sweep.state import TrialState
from distsens.search import SweepPlan

_PLACES = ("storage.", "tracking.")


def sweep_files(
    name: str, plan: SweepPlan, trials: Sequence[TrialState], outcome: Outcome, champion: Mapping[str, Any] | None
) -> dict[str, bytes]:
    """By path: ``report.html``, its figures as PNG and SVG, ``trials.parquet``, ``front.csv`` and ``findings.txt``."""
    plates = sweep_plates(trials, outcome, plan.space, plan.rungs, None if champion is None else champion["trial"])
    own = {field: value for field, value in plan.base.flat().items() if not field.startswith(_PLACES)}
    about = f"{plan.base.name}: {', '.join(plan.space)}; {len(trials)} trials by {plan.sweep.searcher}" + (
        f" and {plan.sweep.scheduler}" if plan.sweep.scheduler != "none" else ""
    )
    page = sweep_page(name, about, trials, outcome, plates, champion, {**plan.flat(), **own})
    files = {
        "report.html": page.encode(),
        "trials.parquet": _table(trials, outcome),
        "front.csv": _front(outcome),
        "findings.txt": "".join(f"{printable(one)}\n" for one in sweep_sentences(trials, outcome, champion)).encode(),
    }
    for plate in plates:
        files |= {f"figures/{plate.name}.png": plate.png, f"figures/{plate.name}.svg": plate.svg}
    return files


def sweep_metrics(
    trials: Sequence[TrialState], outcome: Outcome, champion: Mapping[str, Any] | None
) -> dict[str, float]:
    """The counts for MLflow."""
    numbers = {"hypervolume": outcome.hypervolume, "trials": float(len(trials)), "evaluations": outcome.evaluations}
    numbers |= {} if outcome.saved is None else {"evaluations_saved": outcome.saved}
    numbers |= {f"importance/{field}": share for field, share in outcome.importance.items()}
    if outcome.best and (point := outcome.best[0].point) is not None:
        numbers |= {"best/clean_accuracy": point.clean, "best/robust_accuracy": point.robust}
    if champion is not None:
        numbers |= {f"champion/test/{name}": value for name, value in champion["test"].items()}
    return numbers


def _rows(trials: Sequence[TrialState]) -> pd.DataFrame:
    rows = [
        {
            "trial": one.trial,
            "number": one.number,
            **one.values,
            "rung": one.rungs_done,
            "clean_accuracy": None if one.point is None else one.point.clean,
            "robust_accuracy": None if one.point is None else one.point.robust,
            "autoattack": one.autoattack,
            "seconds": one.seconds,
            "evaluations": one.evaluations,
            "status": one.status,
            "failure": one.failure,
            "mlflow_run_id": one.mlflow_run_id,
        }
        for one in trials
    ]
    return pd.DataFrame([{name: _in_table(value) for name, value in row.items()} for row in rows])


def _in_table(value: Any) -> Any:
    """A value as a table takes it, which a text that is not UTF-8 is not."""
    if isinstance(value, list | tuple):
        return list(map(_in_table, value))
    return printable(value) if isinstance(value, str) else value


def _table(trials: Sequence[TrialState], outcome: Outcome) -> bytes:
    """All trials as a Parquet file, with whether each is on the front."""
    rows = _rows(trials)
    rows["front"] = rows["trial"].isin([one.trial for one in outcome.front])
    buffer = io.BytesIO()
    rows.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _front(outcome: Outcome) -> bytes:
    """The front as CSV, by rising clean accuracy."""
    return csv_table(_rows(outcome.front)) if outcome.front else b"trial\n"
