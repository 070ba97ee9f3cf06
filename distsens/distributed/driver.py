"""The driver of a training run: starts the workers, follows them, and records everything once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Literal

from distsens import assembly
from distsens.distributed.cluster import check_capacity_of_cluster, connected
from distsens.distributed.endings import ended_whatever_happens, explain, finish, in_one_line
from distsens.distributed.preflight import Checked
from distsens.distributed.provenance import provenance_tags
from distsens.distributed.recording import Followed, Recorder, log_figure, log_result, summarize
from distsens.distributed.runs import StoredRun, new_name, pin_places
from distsens.distributed.signals import Caught, ignore_signals, signals_interrupt
from distsens.distributed.training import follow, ray_notes, share_data, start_training
from distsens.distributed.worker import Job
from distsens.errors import printable
from distsens.experiment import Experiment
from distsens.redaction import without_secrets
from distsens.report import Summary, View
from distsens.tracking import TrackedRun


@dataclass
class _Outcome:
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    message: str | None = None
    exit_code: int = 1


def run_training(
    experiment: Experiment, checked: Checked, view: View, resumed: StoredRun | None
) -> tuple[Summary, int]:
    """Train to the end, or to a failure or interruption; the summary, and the exit code of the job.

    Whatever happens, the MLflow run ends FINISHED, FAILED or KILLED, and the run can be resumed by its name.
    """
    with ExitStack() as stack:
        stack.enter_context(in_one_line(view.say))
        caught = stack.enter_context(signals_interrupt())
        notes = stack.enter_context(ray_notes())
        stack.enter_context(connected(view.say))
        check_capacity_of_cluster(experiment.workers, experiment.data.decoding_cpus)
        return train_on_cluster(experiment, checked, view, notes, caught, resumed)


def train_on_cluster(
    experiment: Experiment,
    checked: Checked,
    view: View,
    notes: str,
    caught: Caught,
    resumed: StoredRun | None = None,
    *,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> tuple[Summary, int]:
    """:func:`run_training` for a driver that is connected already, and hears signals.

    Parameters
    ----------
    notes : a folder of :func:`ray_notes`.
    name : of a new run; default one that no other has.
    tags : further ones of a new MLflow run.
    """
    began = time.monotonic()
    experiment = pin_places(assembly.pin_files(experiment), checked.storage, checked.tracking_uri)
    followed, outcome = Followed(), _Outcome()
    stored, tracked = _open_run(experiment, checked, resumed, name or new_name(experiment), tags or {}, view)
    try:
        view.say(f"run {stored.name}")
        view.say(f"storage {stored.place.url}")
        view.say(f"tracking {without_secrets(tracked.uri)} run {tracked.run_id}")
        if resumed is None:
            _describe(experiment, checked, tracked)
        dataset = checked.dataset
        arrays = share_data(dataset)
        classes = len(dataset.classes)
        job = Job(stored.name, experiment, dataset.shape, classes, arrays, checked.extra, stored.place.url)
        recorder = Recorder(stored, tracked, view, followed, experiment)
        with tracked.watch_system(), closing(start_training(job, notes)) as training:
            follow(training, experiment, view, recorder.take)
        log_figure(stored, tracked, followed)
        if followed.stopped is not None:
            outcome.message = followed.stopped.message
        elif followed.tested is None:
            outcome.message = "the workers ended without a result"
        else:
            view.doing("logging the model")
            log_result(experiment, checked, stored, tracked, followed)
            outcome = _Outcome("FINISHED", None, 0)
    except KeyboardInterrupt:
        ignore_signals()
        outcome = _Outcome("KILLED", f"interrupted by {caught.name}", caught.exit_code)
    except Exception as error:
        outcome.message = explain(error, view.say)
    finally:
        ignore_signals()
        finish(tracked, outcome.status, outcome.message, view.say)
    summary = summarize(
        experiment, stored, tracked, followed, outcome.status, outcome.message, time.monotonic() - began
    )
    return summary, outcome.exit_code


def _open_run(
    experiment: Experiment,
    checked: Checked,
    resumed: StoredRun | None,
    name: str,
    more_tags: Mapping[str, str],
    view: View,
) -> tuple[StoredRun, TrackedRun]:
    """The run in MLflow, and in storage, from where it can be resumed."""
    tags = provenance_tags(experiment.workers, "jobs/train.py")
    if resumed is not None:
        tracked = TrackedRun.reopen(checked.tracking_uri, resumed.mlflow_run_id, artifact_root=checked.artifact_root)
        with ended_whatever_happens(tracked, view.say):
            resumed.save()  # It may have been moved.
            for tag, value in tags.items():
                tracked.set_tag(tag, value)
        return StoredRun(resumed.name, resumed.place, experiment, resumed.mlflow_run_id), tracked
    tracked = TrackedRun.create(
        checked.tracking_uri,
        experiment=experiment.tracking.experiment,
        name=name,
        params=experiment.flat(),
        tags={**tags, **more_tags, "distsens.run": name},
        artifact_root=checked.artifact_root,
    )
    stored = StoredRun(name, checked.storage.child(name), experiment, tracked.run_id)
    with ended_whatever_happens(tracked, view.say):
        stored.save()
    return stored, tracked


def _describe(experiment: Experiment, checked: Checked, tracked: TrackedRun) -> None:
    """What is trained, and on what, for MLflow."""
    tracked.log_text("experiment.yaml", experiment.to_yaml())
    dataset = checked.dataset
    if dataset.left_out:
        tracked.log_text("left_out.txt", "".join(f"{printable(one)}\n" for one in dataset.left_out))
    for context in ("train", "validation", "test"):
        split = getattr(dataset, context)
        tracked.log_dataset(
            f"{dataset.name}-{context}",
            digest=split.digest(),
            context=context,
            source=dataset.name if dataset.name == "digits" else assembly.data_address(experiment),
            images=len(split),
            image_shape=dataset.shape,
            classes=len(dataset.classes),
        )
