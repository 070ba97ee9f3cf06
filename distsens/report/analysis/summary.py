"""The result of an analysis, for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from distsens.analysis import CLEAN, NOISE, Findings, neurons_to_flip
from distsens.report.analysis.build import Report
from distsens.report.analysis.figures_models import of_model
from distsens.report.analysis.sentences_ablation import ablation_verdicts

Json = dict[str, Any]


@dataclass(frozen=True)
class AnalysisSummary:
    """The result of an analysis, as ``--summary`` writes it; a number that does not exist is null.

    status : ``finished``, ``failed`` or ``interrupted``; without findings unless finished.
    message : why it is not finished.
    run, storage : name, and where ``report.html``, ``figures/``, ``tables/`` and this file (``analysis.json``) are.
    mlflow_uri, mlflow_run_id : where it is tracked, with the same files.
    analysis : everything that decides it, with defaults filled in.
    data : what was analysed, with its digest and the ``choice`` (how ``data.limit`` chose).
    models : a list, of each its ``name``, ``address``, ``sha256``, ``run``, ``epoch``, ``mlflow_run_id`` and

        ``accuracy`` : by condition (``clean``, the attacks, ``noise``) ``value``, ``low``, ``high``,
            ``flipped``, ``l2``.
        ``layers`` : by name ``neurons``, and means over them of ``absolute``, ``relative``, ``noise``, ``over_noise``.
        ``absolute``, ``relative`` : means over layers.
        ``ablation`` : by layer what :func:`~distsens.report.analysis.sentences_ablation.ablation_verdicts` says.
        ``neurons_to_flip`` : by layer, how many flip half of the images, ``top``, ``random`` and ``bottom``.
        ``contribution_gap`` : by layer, how far the contributions' sum is from the real change.
        ``attack_seconds``, ``measure_seconds`` : over all workers.
    robustness : over three models or more, rank correlation of ``absolute`` and ``relative`` with accuracy; else null.
    findings : the sentences of the report.
    tables : names of the Parquet files in ``tables/``.
    warnings : what they are to be read with.
    seconds, workers : what it took.
    """

    status: Literal["finished", "failed", "interrupted"]
    message: str | None
    run: str
    storage: str
    mlflow_uri: str
    mlflow_run_id: str
    analysis: Json
    data: Json
    models: list[Json]
    robustness: Json | None
    findings: list[str]
    tables: list[str]
    warnings: list[str]
    seconds: float
    workers: int

    @staticmethod
    def of(
        findings: Findings | None,
        report: Report | None,
        *,
        models: Sequence[Json],
        costs: Sequence[Mapping[str, float]],
        **known: Any,
    ) -> AnalysisSummary:
        """Take everything from the tables."""
        described = [dict(one) for one in models]
        if findings is not None:
            for one, cost in zip(described, costs, strict=True):
                one |= {**_model(findings, one["name"]), **cost}
        correlated = None if findings is None or not len(findings.robustness) else findings.robustness.iloc[0].to_dict()
        return AnalysisSummary(
            **known,
            models=[_plain(one) for one in described],
            robustness=_plain(correlated),
            findings=[] if report is None else list(report.sentences),
            tables=[] if findings is None else list(findings.tables()),
            workers=known["analysis"]["workers"]["num"],
        )

    def to_dict(self) -> Json:
        """For JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """The content of ``analysis.json``."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def metrics(self) -> dict[str, float]:
        """The numbers for MLflow, under the name of their model where there are several."""
        numbers: dict[str, float] = {}
        for model in self.models:
            prefix = "analysis" if len(self.models) == 1 else f"analysis/{model['name']}"
            for condition, row in model.get("accuracy", {}).items():
                numbers[f"{prefix}/accuracy/{condition}"] = row["value"]
            for layer, row in model.get("layers", {}).items():
                for measure in ("absolute", "relative", "over_noise"):
                    if row[measure] is not None:
                        numbers[f"{prefix}/{measure}/{layer}"] = row[measure]
            for layer, verdict in model.get("ablation", {}).items():
                for selection in ("top", "random", "bottom"):
                    numbers[f"{prefix}/ablation/{selection}/{layer}"] = verdict[selection]
        for measure in ("absolute", "relative"):
            if self.robustness is not None and self.robustness[measure] is not None:
                numbers[f"analysis/rank_correlation/{measure}"] = self.robustness[measure]
        return numbers


def _model(findings: Findings, name: str) -> Json:
    conditions = of_model(findings.conditions, name).rename(columns={"accuracy": "value"}).set_index("condition")
    layers = of_model(findings.layers[findings.layers["condition"] == findings.condition], name).set_index("layer")
    overall = of_model(findings.models, name).iloc[0]
    described: Json = {
        "accuracy": {
            condition: conditions.loc[condition, ["value", "low", "high", "flipped", "l2"]].to_dict()
            for condition in (CLEAN, *(c for c in conditions.index if c not in (CLEAN, NOISE)), NOISE)
        },
        "layers": layers[["neurons", "absolute", "relative", "noise", "over_noise"]].to_dict("index"),
        "absolute": overall["absolute"],
        "relative": overall["relative"],
        "ablation": {one["layer"]: one for one in ablation_verdicts(findings, name)},
        "neurons_to_flip": {},
        "contribution_gap": {},
    }
    if len(curves := of_model(findings.flip_curves, name)):
        needed = neurons_to_flip(curves)
        for layer, part in needed.groupby("layer", sort=False):
            described["neurons_to_flip"][layer] = dict(zip(part["selection"], part["half"], strict=True))
    if len(gaps := of_model(findings.completeness, name)):
        described["contribution_gap"] = dict(zip(gaps["layer"], gaps["gap"], strict=True))
    return described


def _plain(value: Any) -> Any:
    """As JSON knows it: no numpy, no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
