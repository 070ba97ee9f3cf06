"""What the driver writes down of a run: each event once, to the view, to MLflow and to storage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from distsens import assembly
from distsens.distributed.gauges import RunGauges
from distsens.distributed.monitor import EndedEarly, EpochFinished, Event, Started, Stopped, Tested
from distsens.distributed.preflight import Checked
from distsens.distributed.runs import StoredRun
from distsens.experiment import Experiment
from distsens.redaction import without_secrets
from distsens.report import Summary, View, in_style, sensitivity_parquet, training_figure
from distsens.storage import Checkpoints, published
from distsens.tracking import TrackedRun
from distsens.training import WEIGHTS, EpochRecord, best_epoch, load_weights


@dataclass
class Followed:
    """What the driver knows of the run so far."""

    history: list[EpochRecord] = field(default_factory=list)
    workers: int = 0
    tested: Tested | None = None
    stopped: Stopped | None = None
    ended_early: str | None = None
    model_uri: str | None = None
    published: str | None = None

    @property
    def best(self) -> EpochRecord | None:
        """The best epoch so far."""
        return best_epoch(self.history)

    @property
    def alarm(self) -> str | None:
        """The first alarm so far."""
        return next((record.alarm for record in self.history if record.alarm is not None), None)


@dataclass
class Recorder:
    """Writes each event down once: to the view, to MLflow and to storage."""

    stored: StoredRun
    tracked: TrackedRun
    view: View
    followed: Followed
    experiment: Experiment

    def __post_init__(self) -> None:
        self._gauges = RunGauges(self.stored.name)

    def take(self, event: Event) -> None:
        """Record one event."""
        match event:
            case Started():
                self._started(event)
            case EpochFinished(record, best, saved):
                self.followed.history.append(record)
                self._gauges.epoch(record, saved=saved)
                self._log(record)
                self._show(record, best=best)
                if record.epoch == self.experiment.training.epochs:
                    self.view.doing("testing")
            case EndedEarly(epoch, reason):
                self.followed.ended_early = f"epoch {epoch}: {reason}"
                self.view.say(f"ended early at {self.followed.ended_early}")
                self.tracked.set_tag("distsens.ended_early", self.followed.ended_early)
                self.view.doing("testing")
            case Stopped():
                self.followed.stopped = event
            case Tested():
                self.followed.tested = event

    def _started(self, event: Started) -> None:
        """The workers stand, perhaps again: their history is what counts, and what an old driver missed is logged."""
        for line in event.skipped:
            self.view.say(f"skipped: {line}")
        if self.followed.history or event.history:
            epoch = event.history[-1].epoch if event.history else 0
            self.view.say(f"resumed after epoch {epoch}")
        if not self.followed.history:
            for record in event.history:
                self._show(record, best=False, new=False)
        self.followed.history = list(event.history)
        self.followed.workers = event.workers
        self.tracked.set_tag("distsens.workers", str(event.workers))
        self.tracked.set_tag("distsens.device", event.device)
        for record in event.history:
            self._log(record)
        self.view.doing("training")

    def _show(self, record: EpochRecord, *, best: bool, new: bool = True) -> None:
        self.view.epoch(record, best=best, new=new)
        if record.alarm is not None:
            self.view.say(f"alarm: {record.alarm}")
        if lost := record.metrics.get("validation/not_finite"):
            self.view.say(f"{lost:.0f} validation images have logits that are NaN or infinite, which counts as wrong")

    def _log(self, record: EpochRecord) -> None:
        logged = self.tracked.last_logged_epoch()
        if logged is not None and record.epoch <= logged:
            return
        if record.sensitivity:
            path = f"sensitivity/epoch-{record.epoch:04d}.parquet"
            ratio, digest = self.experiment.stabilize.ratio, self.experiment.digest()
            table = sensitivity_parquet(record.epoch, record.sensitivity, ratio, digest)
            self.stored.place.put(path, table)
            self.tracked.log_bytes(path, table)
        self.tracked.log_epoch(record.epoch, record.metrics)
        if record.alarm is not None:
            self.tracked.set_tag("distsens.alarm", record.alarm)


def log_result(
    experiment: Experiment, checked: Checked, stored: StoredRun, tracked: TrackedRun, followed: Followed
) -> None:
    """Test metrics, checkpoint manifest and the best model, to MLflow and as a published model to the storage."""
    tested = followed.tested
    if tested is None:
        raise ValueError("nothing was tested")
    numbers = {f"test/{name}": value for name, value in _test_numbers(tested).items()}
    tracked.log_result({"best_epoch": float(tested.best_epoch), **numbers})
    checkpoints = Checkpoints(stored.place)
    best = checkpoints.load(tested.best_epoch)
    followed.published = published.publish(
        checked.storage,
        stored.name,
        {WEIGHTS: best.files[WEIGHTS], "experiment.yaml": experiment.to_yaml().encode()},
        epoch=tested.best_epoch,
        experiment=best.manifest.experiment,
        metrics={**best.manifest.metrics, **numbers},
    )
    tracked.set_tag("distsens.published", followed.published)
    tracked.log_json("checkpoint.json", {"url": stored.place.url, **_manifest(best.manifest)})
    model = assembly.build_model(experiment, checked.dataset.shape, len(checked.dataset.classes))
    load_weights(model, best.files[WEIGHTS])
    example = np.asarray(checked.dataset.validation.images[:2], np.float32) / np.float32(255.0)
    followed.model_uri = tracked.log_model(model, example, best.files[WEIGHTS])


def log_figure(stored: StoredRun, tracked: TrackedRun, followed: Followed) -> None:
    """Accuracy and sensitivity over the epochs so far."""
    if followed.best is not None:
        figure = training_figure(followed.history, followed.best.epoch, stored.name)
        with in_style():
            tracked.log_figure("training.png", figure)
            tracked.log_figure("training.svg", figure)


def _manifest(manifest: Any) -> dict[str, Any]:
    files = {name: {"size": one.size, "sha256": one.sha256} for name, one in manifest.files.items()}
    return {"epoch": manifest.epoch, "experiment": manifest.experiment, "files": files}


def _test_numbers(tested: Tested) -> dict[str, float]:
    measurement = tested.measurement
    return {
        "images": float(measurement.images),
        "clean_accuracy": measurement.clean_accuracy,
        **{f"{name}_accuracy": value for name, value in measurement.robust_accuracies.items()},
        "not_finite": float(measurement.not_finite),
    }


def summarize(
    experiment: Experiment,
    stored: StoredRun,
    tracked: TrackedRun,
    followed: Followed,
    status: Literal["FINISHED", "FAILED", "KILLED"],
    message: str | None,
    seconds: float,
) -> Summary:
    """The run's result, for scripts and for the final table."""
    epochs = [record for record in followed.history if record.epoch > 0]
    best = followed.best

    def mean(name: str) -> float | None:
        values = [record.metrics[f"throughput/{name}"] for record in epochs]
        return sum(values) / len(values) if values else None

    return Summary(
        status={"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}[status],
        message=message,
        run=stored.name,
        storage=stored.place.url,
        published=followed.published,
        mlflow_uri=without_secrets(tracked.uri),
        mlflow_run_id=tracked.run_id,
        mlflow_model=followed.model_uri,
        experiment=experiment.model_dump(mode="json"),
        epochs=len(epochs),
        ended_early=followed.ended_early,
        alarm=followed.alarm,
        best_epoch=best.epoch if best else None,
        validation={name: best.metrics[f"validation/{name}"] for name in ("clean_accuracy", "robust_accuracy")}
        if best
        else None,
        test=_test_numbers(followed.tested) if followed.tested else None,
        sensitivity=_sensitivity(epochs[0], best) if best else {},
        seconds=seconds,
        images_per_second=mean("images_per_second"),
        gradient_evaluations_per_second=mean("gradient_evaluations_per_second"),
        attack_share=mean("attack_share"),
        workers=followed.workers,
    )


def _sensitivity(first: EpochRecord, best: EpochRecord) -> dict[str, dict[str, dict[str, float]]]:
    prefix = "sensitivity/absolute/"
    layers = [name.removeprefix(prefix) for name in first.metrics if name.startswith(prefix)]
    return {
        layer: {
            measure: {
                "first": first.metrics[f"sensitivity/{measure}/{layer}"],
                "best": best.metrics[f"sensitivity/{measure}/{layer}"],
            }
            for measure in ("absolute", "relative")
        }
        for layer in layers
    }
