"""The driver of a training run: starts the workers, follows them, and records everything once."""

from __future__ import annotations

import re
import tempfile
import threading
import time
import traceback
import uuid
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback

from distsens import assembly
from distsens.data import ImageFiles, ImageSet
from distsens.distributed.cluster import PLACES_TIMEOUT_S, check_capacity_of_cluster, connected
from distsens.distributed.monitor import start_monitor
from distsens.distributed.preflight import Checked
from distsens.distributed.provenance import provenance_tags
from distsens.distributed.recording import Followed, Recorder, log_figure, log_result, summarize
from distsens.distributed.runs import StoredRun, new_name, pin_places
from distsens.distributed.signals import ignore_signals, signals_interrupt
from distsens.distributed.worker import Job, train_worker
from distsens.errors import InputError
from distsens.experiment import Experiment, Workers
from distsens.report import Summary, View
from distsens.storage import CheckpointError
from distsens.tracking import TakenOverError, TrackedRun, is_store_error, reason, without_password

_SECONDS_BETWEEN_LOOKS = 0.25
_SECONDS_BEFORE_WAITING_IS_SAID = 20.0
_SECONDS_FOR_A_CONTROLLER = 30.0
_SECONDS_OF_QUIET = 30.0
_SECONDS_FOR_A_LOST_MACHINE = 600.0
_SECONDS_FOR_A_BUSY_CLUSTER = 24 * 3600
# What the other workers say when one of them has gone.
_BROKEN_GROUP = re.compile(r"connection|gloo|nccl|process ?group|peer", re.IGNORECASE)


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
    began = time.monotonic()
    experiment = pin_places(assembly.pin_weights(experiment), checked.storage, checked.tracking_uri)
    followed, outcome = Followed(), _Outcome()
    # Ray's own handlers, set when it connects, would end the driver before it has ended the run.
    with signals_interrupt(), _ray_notes() as notes, connected(), signals_interrupt() as caught:
        check_capacity_of_cluster(experiment.workers)
        stored, tracked = _open_run(experiment, checked, resumed)
        view.say(f"run {stored.name}")
        view.say(f"storage {stored.place.url}")
        view.say(f"tracking {without_password(tracked.uri)} run {tracked.run_id}")
        try:
            with tracked.watch_system(), closing(_start(experiment, checked, stored, notes)) as training:
                _follow(training, stored, tracked, view, followed, experiment)
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
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            outcome.message = _cause(error)
        except (OSError, InputError, CheckpointError, TakenOverError) as error:
            outcome.message = str(error)
        except Exception as error:
            if is_store_error(error):
                outcome.message = f"MLflow: {reason(error)}"
            else:
                view.say(traceback.format_exc())  # A fault of ours, which can only be mended where it is.
                outcome.message = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        finally:
            ignore_signals()
            _finish(tracked, outcome, view)
    summary = summarize(
        experiment, stored, tracked, followed, outcome.status, outcome.message, time.monotonic() - began
    )
    return summary, outcome.exit_code


def _finish(tracked: TrackedRun, outcome: _Outcome, view: View) -> None:
    """End the MLflow run; a store that is down takes nothing else with it."""
    try:
        tracked.finish(outcome.status, outcome.message)
    except Exception as error:
        if not is_store_error(error):
            raise
        view.say(f"the MLflow run cannot be ended now ({reason(error)}); its guardian goes on trying for some minutes")


def _ray_notes() -> tempfile.TemporaryDirectory[str]:
    """A folder for the notes of Ray Train's controller, which runs on the driver's machine.

    Nothing reads them: checkpoints and metrics have their own ways to the storage and to the driver.
    """
    return tempfile.TemporaryDirectory(prefix="distsens-", ignore_cleanup_errors=True)


def _open_run(experiment: Experiment, checked: Checked, resumed: StoredRun | None) -> tuple[StoredRun, TrackedRun]:
    tags = provenance_tags(experiment.workers, "jobs/train.py")
    if resumed is not None:
        tracked = TrackedRun.reopen(checked.tracking_uri, resumed.mlflow_run_id)
        for name, value in tags.items():
            tracked.set_tag(name, value)
        return StoredRun(resumed.name, resumed.place, experiment, resumed.mlflow_run_id), tracked
    name = new_name(experiment)
    tracked = TrackedRun.create(
        checked.tracking_uri,
        experiment=experiment.tracking.experiment,
        name=name,
        params=experiment.flat(),
        tags={**tags, "distsens.run": name},
        artifact_root=checked.artifact_root,
    )
    stored = StoredRun(name, checked.storage.child(name), experiment, tracked.run_id)
    stored.save()
    tracked.log_text("experiment.yaml", experiment.to_yaml())
    dataset = checked.dataset
    if dataset.left_out:
        tracked.log_text("left_out.txt", "\n".join(dataset.left_out) + "\n")
    for context in ("train", "validation", "test"):
        split = getattr(dataset, context)
        tracked.log_dataset(
            f"{dataset.name}-{context}",
            digest=split.digest(),
            context=context,
            source=dataset.name if dataset.name == "digits" else str(assembly.data_root(experiment)),
            images=len(split),
            image_shape=dataset.shape,
            classes=len(dataset.classes),
        )
    return stored, tracked


class _Training:
    """``TorchTrainer.fit`` in a thread, so that the main one can follow, and answer signals."""

    def __init__(self, trainer: TorchTrainer, monitor: Any) -> None:
        self.monitor = monitor
        self._trainer = trainer
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self._error = error

    @property
    def going_on(self) -> bool:
        return self._thread.is_alive()

    def check(self) -> None:
        """Raise in the main thread what ended the training, if it was an error."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the training if it still goes on, and its thread: one that waits in Ray must not outlive the connection.

        Ray frees what the thread waits on when it disconnects, and the process dies of it.
        """
        ignore_signals()
        deadline = time.monotonic() + _SECONDS_FOR_A_CONTROLLER
        while self.going_on and time.monotonic() < deadline:
            try:
                controller = ray.get(self.monitor.controller.remote())
            except ray.exceptions.RayActorError:
                return  # The machine lost the monitor, so nobody knows the controller.
            if controller is not None:
                ray.kill(controller)
            self._thread.join(_SECONDS_BETWEEN_LOOKS)


class _TellsOfController(ControllerCallback):
    """Tells the monitor of Ray Train's controller, so that the driver can end it."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ARG002
        ray.get(self._monitor.controlled_by.remote(ray.get_runtime_context().current_actor))


def _start(experiment: Experiment, checked: Checked, stored: StoredRun, notes: str) -> _Training:
    """Share the data with the workers and start them."""
    dataset = checked.dataset
    arrays = {}
    for name in ("train", "validation", "test"):
        split: ImageSet = getattr(dataset, name)
        in_files = isinstance(split.images, ImageFiles)
        arrays[f"{name}/images"] = ray.put(split.images if in_files else np.ascontiguousarray(split.images))
        arrays[f"{name}/labels"] = ray.put(np.ascontiguousarray(split.labels))
    monitor = start_monitor()
    job = Job(experiment, dataset.shape, len(dataset.classes), arrays, checked.extra, stored.place.url, monitor)
    workers = experiment.workers
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, "GPU": workers.gpus} if workers.gpus else {"CPU": workers.cpus},
        ),
        run_config=ray.train.RunConfig(
            # A name of its own for each attempt: under a known one Ray would take up its own old state.
            name=f"ray-{uuid.uuid4().hex[:8]}",
            storage_path=notes,
            failure_config=ray.train.FailureConfig(
                max_failures=workers.max_failures,
                controller_failure_limit=_SECONDS_FOR_A_BUSY_CLUSTER // PLACES_TIMEOUT_S,
            ),
            callbacks=[_TellsOfController(monitor)],
        ),
    )
    return _Training(trainer, monitor)


def _follow(
    training: _Training,
    stored: StoredRun,
    tracked: TrackedRun,
    view: View,
    followed: Followed,
    experiment: Experiment,
) -> None:
    """Take what the workers tell until they are done; raise what ended them."""
    view.doing("starting the workers")
    recorder = Recorder(stored, tracked, view, followed, experiment)
    began, waiting_said, shown, tested = time.monotonic(), False, None, 0
    quiet = _Quiet(experiment.workers)
    going_on = True
    while going_on:
        going_on = training.going_on
        events, progress, tested_now = ray.get(training.monitor.collect.remote())
        if events or progress != shown or tested_now != tested:
            quiet.ended()
        else:
            quiet.check()
        for event in events:
            recorder.take(event)
        if progress is not None and progress != shown:
            shown = progress
            view.step(progress)
        if tested_now != tested:
            tested = tested_now
            view.doing("testing", f"{tested} images")
        if not followed.workers and not waiting_said and time.monotonic() - began > _SECONDS_BEFORE_WAITING_IS_SAID:
            waiting_said = True
            view.say("still waiting for the cluster to give the workers their place")
        if going_on:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    training.check()


class _Quiet:
    """Looks after a silence of the workers whether the cluster can still hold them, and gives up when it cannot.

    A machine that is lost may be replaced, so it is given some minutes; a busy cluster is waited for.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.ended()

    def ended(self) -> None:
        """The workers have been heard."""
        self._looked = time.monotonic()
        self._too_small_since: float | None = None

    def check(self) -> None:
        """Nothing was heard; :class:`InputError` when the cluster has been too small for too long."""
        now = time.monotonic()
        if now - self._looked < _SECONDS_OF_QUIET:
            return
        self._looked = now
        try:
            check_capacity_of_cluster(self._workers)
        except InputError:
            if self._too_small_since is None:
                self._too_small_since = now
            elif now - self._too_small_since > _SECONDS_FOR_A_LOST_MACHINE:
                raise
        else:
            self._too_small_since = None


def _cause(error: BaseException) -> str:
    """One line for what ended the workers: a worker's own error, without Ray's wrapping.

    When one fails the others lose their connection to it, so theirs is not the cause unless there is no other.
    """
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    own = [rank for rank in sorted(failures) if not _BROKEN_GROUP.search(_last_line(failures[rank]))]
    if failures:
        rank = own[0] if own else min(failures)
        return f"worker {rank}: {_last_line(failures[rank])}"
    lines = _lines(error)
    # Of its own accord Ray says first what happened, and then what can be done about it.
    return f"Ray: {lines[0]}" if isinstance(error, ray.exceptions.RayError) else lines[-1]


def _last_line(error: BaseException) -> str:
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [repr(error)]
