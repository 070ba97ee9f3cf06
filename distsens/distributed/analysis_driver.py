"""The driver of an analysis: has shards measured and intervened on, and records the findings once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import ray

from distsens.analysis import (
    Analysis,
    Findings,
    Intervened,
    InterventionPlan,
    Measured,
    ModelFindings,
    findings_of,
    neuron_table,
    sensitivities,
    wanted_sights,
)
from distsens.data import representatives
from distsens.distributed.analysis_preflight import CheckedAnalysis
from distsens.distributed.analysts import AnalystAssignment, Analysts, Shard
from distsens.distributed.cluster import check_capacity_of_cluster, connected
from distsens.distributed.endings import MLFLOW_STATUS, Status, ended_whatever_happens, explain, finish, in_one_line
from distsens.distributed.examination_driver import name_after
from distsens.distributed.examiners import share_split
from distsens.distributed.provenance import provenance_tags
from distsens.distributed.shards import share_out_batches
from distsens.distributed.signals import ignore_signals, signals_interrupt
from distsens.redaction import without_secrets
from distsens.report.analysis import AnalysisSummary, AnalysisView, Report, build_report
from distsens.storage import Place, open_place
from distsens.tracking import TrackedRun

_SECONDS_BETWEEN_LOOKS = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class _Found:
    """All models' findings, and how the neurons of each further model match those of the first one."""

    models: list[ModelFindings]
    matches: dict[str, Any]


def run_analysis(checked: CheckedAnalysis, view: AnalysisView) -> tuple[AnalysisSummary, int]:
    """Analyse to the end, or to a failure or interruption: the summary and the exit code."""
    began = time.monotonic()
    status: Status = "failed"
    message, code = None, 1
    analysis = checked.analysis
    findings: Findings | None = None
    report: Report | None = None
    with ExitStack() as stack:
        stack.enter_context(in_one_line(view.say))
        caught = stack.enter_context(signals_interrupt())
        stack.enter_context(connected(view.say))
        check_capacity_of_cluster(analysis.workers)
        name = name_after("analyze", checked.names[0])
        place = checked.storage.child(name)
        tracked = _track(checked, name)
        stack.enter_context(ended_whatever_happens(tracked, view.say))
        view.say(f"analysis {name}")
        view.say(f"storage {place.url}")
        view.say(f"tracking {without_secrets(tracked.uri)} run {tracked.run_id}")

        def summarize(status: Status, message: str | None) -> AnalysisSummary:
            return AnalysisSummary.of(
                findings,
                report,
                status=status,
                message=message,
                run=name,
                storage=place.url,
                mlflow_uri=without_secrets(tracked.uri),
                mlflow_run_id=tracked.run_id,
                analysis=analysis.model_dump(mode="json"),
                models=[_model(checked, position) for position in range(len(checked.names))],
                data=_data(checked),
                costs=[] if findings is None else [_cost(one) for one in found.models],
                warnings=list(checked.warnings),
                seconds=time.monotonic() - began,
            )

        try:
            found = _analyse(checked, name, view)
            view.stage("writing the report", 1)
            classes = checked.examinations[0].dataset.classes
            findings = findings_of(found.models, classes, analysis.ratio, analysis.measure, found.matches)
            report = build_report(
                findings,
                {one.name: one.sights for one in found.models},
                analysis=analysis,
                classes=classes,
                images=len(checked.split),
                title=" and ".join(checked.names) if len(checked.names) < 3 else f"{len(checked.names)} models",
                warnings=checked.warnings,
            )
            _record(summarize("finished", None), findings, report, place, tracked)
            status, code = "finished", 0
        except KeyboardInterrupt:
            ignore_signals()
            status, message, code = "interrupted", f"interrupted by {caught.name}", caught.exit_code
        except Exception as error:
            message = explain(error, view.say)
        finally:
            ignore_signals()
            finish(tracked, MLFLOW_STATUS[status], message, view.say)
    return summarize(status, message), code


def _track(checked: CheckedAnalysis, name: str) -> TrackedRun:
    analysis, first = checked.analysis, checked.examinations[0]
    tags = provenance_tags(analysis.workers, "jobs/analyze.py")
    parents = [subject.mlflow_run_id for subject in checked.subjects if subject.mlflow_run_id is not None]
    if parents:
        tags |= {"mlflow.parentRunId": parents[0], "distsens.trained_by": " ".join(parents)}
    digests: dict[str, str] = {}
    for number, (label, one) in enumerate(zip(checked.names, checked.subjects, strict=True), 1):
        digests |= {f"model.{number}.name": label, f"model.{number}.sha256": one.sha256}
    return TrackedRun.create(
        first.tracking_uri,
        experiment=analysis.tracking.experiment,
        name=name,
        params=analysis.flat() | digests | {"data.digest": first.data_digest},
        tags={**tags, "distsens.analysis": name, "distsens.model_address": " ".join(analysis.addresses)},
        artifact_root=first.artifact_root,
    )


def _analyse(checked: CheckedAnalysis, name: str, view: AnalysisView) -> _Found:
    analysis = checked.analysis
    images, labels = share_split(checked.split)
    first = checked.examinations[0]
    analysts = Analysts(
        AnalystAssignment(
            name,
            analysis,
            checked.subjects,
            tuple(tuple(neurons) for neurons in checked.layers),
            checked.threat,
            first.dataset.shape,
            len(first.dataset.classes),
            checked.numbers,
            images,
            labels,
            None if checked.pairs is None else ray.put(checked.pairs.adversarial),
        ),
        view.say,
    )
    models = range(len(checked.names))
    shards = _shards(models, analysis, len(checked.split))
    measured = _merged(view.count("measuring", analysts.measure(shards, _SECONDS_BETWEEN_LOOKS), len(shards)))
    found = [ModelFindings(name, measured[model]) for model, name in enumerate(checked.names)]
    if analysis.ablation.images:
        _intervene(checked, analysts, found, view)
    if analysis.gallery.neurons:
        wanted = {model: _wanted(checked, found[model].measured) for model in models}
        looks = analysts.look(wanted, _SECONDS_BETWEEN_LOOKS)
        for (model, _), sights in view.count("looking", looks, len(wanted)):
            found[model].sights = sights
    for model, history in enumerate(checked.histories):
        found[model].history = history
    return _Found(found, _matches(checked, analysts, view))


def _shards(models: Sequence[int], analysis: Analysis, images: int) -> dict[Shard, range]:
    parts = share_out_batches(images, analysis.workers.num, analysis.batch_size, analysis.shard)
    return {(model, number): part for model in models for number, part in enumerate(parts)}


def _intervene(checked: CheckedAnalysis, analysts: Analysts, found: list[ModelFindings], view: AnalysisView) -> None:
    analysis = checked.analysis
    settings = analysis.ablation
    plans = {}
    for model, one in enumerate(found):
        values, means = sensitivities(one.measured, analysis.measure)
        plans[model] = InterventionPlan(
            {layer: values[layer] for layer in checked.intervened[model]},
            {layer: means[layer] for layer in checked.intervened[model]},
            settings.replacements,
            settings.ratios,
            settings.draws,
            analysis.seed,
            settings.steps,
            analysis.batch_size,
        )
    chosen = set(representatives(checked.split.labels, settings.images).tolist())
    measured = _shards(range(len(found)), analysis, len(checked.split))
    some = {shard: [row for row in rows if row in chosen] for shard, rows in measured.items()}
    shards = {shard: rows for shard, rows in some.items() if rows}
    done = view.count("intervening", analysts.intervene(shards, plans, _SECONDS_BETWEEN_LOOKS), len(shards))
    for model, intervened in _merged(done).items():
        found[model].intervened = intervened


def _wanted(checked: CheckedAnalysis, measured: Measured) -> Any:
    analysis = checked.analysis
    neurons = neuron_table(measured.meters, analysis.ratio, analysis.measure)
    first = neurons[neurons["condition"] == neurons["condition"].iloc[0]]
    return wanted_sights(first, measured.changed, measured.activated, analysis.gallery.neurons, analysis.gallery.images)


def _matches(checked: CheckedAnalysis, analysts: Analysts, view: AnalysisView) -> dict[str, Any]:
    """Of layers that have the same name and number of neurons in the first model and in another."""
    if not checked.analysis.matched_images:
        return {}
    mine, layers = checked.layers[0], {}
    for model, others in list(enumerate(checked.layers))[1:]:
        if same := {layer: layer for layer, count in others.items() if mine.get(layer) == count}:
            layers[(0, model)] = same
    done = view.count("matching", analysts.match(layers, _SECONDS_BETWEEN_LOOKS), len(layers))
    return {checked.names[model]: matches for (_, model), matches in done}


M = TypeVar("M", Measured, Intervened)


def _merged(done: Iterator[tuple[Shard, M]]) -> dict[int, M]:
    """The sums of each model, added in the order of its shards, so that their bits depend on no worker's speed."""
    parts = dict(done)
    total: dict[int, M] = {}
    for model, number in sorted(parts):
        if model in total:
            total[model].merge(parts[(model, number)])
        else:
            total[model] = parts[(model, number)]
    return total


def _record(summary: AnalysisSummary, findings: Findings, report: Report, place: Place, tracked: TrackedRun) -> None:
    """Keep everything, where the analysis is wanted and stored first: MLflow's server may be down by now."""
    output = summary.analysis["output"]
    for where in ([] if output is None else [open_place(output)]) + [place]:
        _write(report, findings, summary, where)
    tracked.log_result(summary.metrics())
    for path, content in report.files().items():
        tracked.log_bytes(path, content)
    for name, content in findings.parquet().items():
        tracked.log_bytes(f"tables/{name}.parquet", content)
    tracked.log_json("analysis.json", summary.to_dict())


def _write(report: Report, findings: Findings, summary: AnalysisSummary, place: Place) -> None:
    for path, content in report.files().items():
        place.put(path, content)
    for name, content in findings.parquet().items():
        place.put(f"tables/{name}.parquet", content)
    place.put("analysis.json", summary.to_json().encode())


def _model(checked: CheckedAnalysis, position: int) -> dict[str, Any]:
    subject = checked.subjects[position]
    return {
        "name": checked.names[position],
        "address": subject.address,
        "sha256": subject.sha256,
        "run": subject.run,
        "epoch": subject.epoch,
        "mlflow_run_id": subject.mlflow_run_id,
    }


def _data(checked: CheckedAnalysis) -> dict[str, Any]:
    first = checked.examinations[0]
    return {
        "name": first.dataset.name,
        "split": checked.analysis.data.split,
        "images": len(checked.split),
        "choice": checked.analysis.data.choice,
        "digest": first.data_digest,
    }


def _cost(one: ModelFindings) -> dict[str, float]:
    return {"attack_seconds": one.measured.attack_seconds, "measure_seconds": one.measured.measure_seconds}
