"""One MLflow run: opened once, reopened after every restart, ended once."""

from __future__ import annotations

import json
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from distsens.errors import printable
from distsens.scratch import scratch_folder
from distsens.tracking.guardian import DRIVER_TAG, OUTCOME_TAG, SWEEP_TAG, Guardian, end_trials
from distsens.tracking.moved import follow_artifacts
from distsens.tracking.names import names_in_mlflow
from distsens.tracking.outage import asked_once
from distsens.tracking.store import (
    StoreError,
    artifact_location,
    check_still_there,
    connect,
    find_run,
    open_experiment,
    reason,
)

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from numpy.typing import NDArray
    from torch import nn

MODEL_TAG = "distsens.model"
MODEL_NAME = "model"
_PARENT_TAG = "mlflow.parentRunId"
_TRIAL_TAG = "distsens.trial"
WEIGHTS_ARTIFACT = "weights/model.safetensors"
_EPOCH = "epoch"
_LONGEST_DIGEST = 36
_METRICS_AT_ONCE = 1000  # the most that MLflow takes in one request
_SECONDS_FOR_SYSTEM_METRICS = 5


class TakenOverError(RuntimeError):
    """Another driver has reopened the run, which is its from then on."""


class TrackedRun:
    """A run that is RUNNING and belongs to this process until `finish`.

    Open it by `TrackedRun.create` or `TrackedRun.reopen`. A guardian process sets the run KILLED if this one dies
    first. There is one writer: workers send their numbers to the driver, and of two drivers the later one has the run.
    The run of a sweep's trial is ended with that of the sweep, and needs no guardian of its own.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, driver: str, last_epoch: int | None, sweep: str | None = None
    ) -> None:
        self.uri = str(client.tracking_uri)
        self.run_id = run_id
        self._client = client
        self._driver = driver
        self._last_epoch = last_epoch
        self._ended = False
        self._may_hold_part = False
        self._guardian = None if sweep is not None else Guardian(self.uri, run_id, driver)

    @classmethod
    def create(
        cls,
        uri: str,
        *,
        experiment: str,
        name: str,
        params: Mapping[str, str | int | float | bool | None],
        tags: Mapping[str, str],
        artifact_root: str | None,
        sweep: str | None = None,
        trial: str | None = None,
    ) -> TrackedRun:
        """Start a new run.

        Parameters
        ----------
        uri : address of the store; see `check_tracking`.
        experiment : name of the MLflow experiment, created unless it exists.
        name : the run's name; need not be unique.
        params : what the run was started with, written at once and never changed. MLflow cuts values of more than
            6000 characters.
        tags : what can be searched for and may change later.
        artifact_root : folder or URI under which the experiment's artifacts are stored; used when the experiment is
            created. None leaves it to the server, or puts them beside an SQLite file.
        sweep : id of the sweep's run, for the run of a trial, which is shown and ended with it.
        trial : id of that trial.
        """
        location = artifact_location(uri, artifact_root)
        follow_artifacts(uri, artifact_root)
        client = connect(uri)
        from mlflow.entities import Param

        driver = uuid.uuid4().hex
        beside_store = artifact_root is None and location is not None
        experiment_id = open_experiment(client, experiment, location, beside_store=beside_store)
        nested = {} if sweep is None else {_PARENT_TAG: sweep, SWEEP_TAG: sweep, _TRIAL_TAG: trial or ""}
        started = client.create_run(experiment_id, tags={**tags, **nested, DRIVER_TAG: driver}, run_name=name)
        run = cls(client, started.info.run_id, driver, last_epoch=None, sweep=sweep)
        names = names_in_mlflow(params)
        with run._failed_unless("created"):
            client.log_batch(run.run_id, params=[Param(names[key], str(value)) for key, value in params.items()])
        return run

    @classmethod
    def reopen(cls, uri: str, run_id: str, *, artifact_root: str | None = None) -> TrackedRun:
        """Continue a run, whatever ended it and wherever it was moved, under its own id.

        Parameters
        ----------
        uri, artifact_root : as of :meth:`create`; where the store and its artifacts are now.

        Raises
        ------
        InputError : the store holds no such run, or it was deleted.
        """
        follow_artifacts(uri, artifact_root)
        client = connect(uri)
        found = find_run(client, run_id)
        driver = uuid.uuid4().hex
        # The tag first: from then on no earlier guardian touches the run.
        client.set_tag(run_id, DRIVER_TAG, driver)
        last_epoch = found.data.metrics.get(_EPOCH)
        sweep = found.data.tags.get(SWEEP_TAG)
        run = cls(client, run_id, driver, None if last_epoch is None else int(last_epoch), sweep)
        run._may_hold_part = True
        with run._failed_unless("reopened"):
            client.update_run(run_id, status="RUNNING")
            if OUTCOME_TAG in found.data.tags:
                client.delete_tag(run_id, OUTCOME_TAG)
        return run

    @staticmethod
    def of_trial(uri: str, sweep: str, trial: str) -> str | None:
        """Id of the run of a sweep's trial, or None; a driver that was killed may not have kept what it created."""
        client = connect(uri)
        mine = f"tags.`{SWEEP_TAG}` = '{sweep}' and tags.`{_TRIAL_TAG}` = '{trial}'"
        found = client.search_runs([find_run(client, sweep).info.experiment_id], filter_string=mine, max_results=1)
        return found[0].info.run_id if found else None

    def last_logged_epoch(self) -> int | None:
        """The highest epoch that `log_epoch` has written, None before the first."""
        return self._last_epoch

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Write an epoch's metrics in one call, with the epoch as their step and as the metric ``epoch``.

        An epoch up to `last_logged_epoch` is ignored: a resumed run repeats the epochs after its last checkpoint, with
        the same numbers. Names that MLflow refuses are changed, see `names_in_mlflow`. Infinities are written as NaN,
        because MLflow would store them as 1.8e308, a number that nobody measured.

        Raises
        ------
        TakenOverError : another driver has reopened the run; nothing is written.
        """
        if self._last_epoch is not None and epoch <= self._last_epoch:
            return
        if not self._is_mine():
            raise TakenOverError("another driver has resumed this run; this one leaves it alone")
        batch = _as_metrics({**metrics, _EPOCH: epoch}, step=epoch)
        for first in range(0, len(batch), _METRICS_AT_ONCE):
            part = batch[first : first + _METRICS_AT_ONCE]
            if not self._holds(part[0]):
                self._client.log_batch(self.run_id, part)
        self._last_epoch, self._may_hold_part = epoch, False

    def _holds(self, metric: Metric) -> bool:
        """Whether an earlier driver came as far, of an epoch of several requests of which it did not write the last."""
        if not self._may_hold_part:
            return False
        return any(one.step == metric.step for one in self._client.get_metric_history(self.run_id, metric.key))

    def register(self, model_uri: str, name: str, alias: str, tags: Mapping[str, str], *, run_id: str) -> str:
        """Register a logged model as a new version, which the alias names from then on; the version.

        Parameters
        ----------
        model_uri : as :meth:`log_model` returned it.
        name : of the registered model, created unless it exists.
        alias : such as ``champion``: ``models:/<name>@<alias>``.
        tags : of the version: where it comes from.
        run_id : of the run that logged it.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        logged = self._client.get_logged_model(model_uri.removeprefix("models:/"))
        # One whose answer was lost is there already.
        known = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        created = next((one for one in known if (one.model_id, one.tags) == (logged.model_id, dict(tags))), None)
        if created is None:
            created = self._client.create_model_version(
                name, logged.artifact_location, run_id=run_id, tags=dict(tags), model_id=logged.model_id
            )
        self._client.set_registered_model_alias(name, alias, created.version)
        return str(created.version)

    def log_result(self, metrics: Mapping[str, float]) -> None:
        """Write numbers of the finished model (a final evaluation), under the same rules as `log_epoch`.

        A number that the run already holds is not written again.
        """
        check_still_there(self.uri)
        known = self._client.get_run(self.run_id).data.metrics
        batch = _as_metrics(metrics, step=self._last_epoch or 0)
        self._client.log_batch(self.run_id, [metric for metric in batch if known.get(metric.key) != metric.value])

    def log_dataset(
        self,
        name: str,
        *,
        digest: str,
        context: str,
        source: str,
        images: int,
        image_shape: tuple[int, ...],
        classes: int,
    ) -> None:
        """Record a data set that the run uses; recording it again changes nothing.

        Parameters
        ----------
        name : the data set's name.
        digest : of its content. MLflow shows the first 36 characters; the profile holds all of them.
        context : what it is used for, such as ``train``. A data set (name and digest) has one context in a run.
        source : where it came from: a path, an address or a name.
        images : how many there are.
        image_shape : of one uint8 image, (C, H, W).
        classes : how many labels there are.
        """
        import numpy as np
        from mlflow.data.schema import TensorDatasetSchema
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.types import Schema, TensorSpec

        schema = TensorDatasetSchema(
            features=Schema([TensorSpec(np.dtype(np.uint8), (-1, *image_shape))]),
            targets=Schema([TensorSpec(np.dtype(np.int64), (-1,))]),
        )
        profile = {"num_rows": images, "image_shape": image_shape, "classes": classes, "digest": digest}
        dataset = Dataset(
            name=name,
            digest=digest[:_LONGEST_DIGEST],
            source_type="local",
            source=json.dumps({"uri": source}),
            schema=json.dumps(schema.to_dict()),
            profile=json.dumps(profile),
        )
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def set_tag(self, name: str, value: str) -> None:
        """Set a tag, replacing an earlier value."""
        self._client.set_tag(self.run_id, name, value)

    def log_bytes(self, path: str, data: bytes) -> None:
        """Store an artifact under a relative path with ``/``, replacing an earlier one."""
        target = PurePosixPath(path)
        with _writing_artifacts(), scratch_folder() as folder:
            file = folder / target.name
            file.write_bytes(data)
            self._client.log_artifact(
                self.run_id, str(file), "" if target.parent == PurePosixPath() else str(target.parent)
            )

    def log_text(self, path: str, text: str) -> None:
        """Store a text artifact as UTF-8."""
        self.log_bytes(path, text.encode())

    def log_json(self, path: str, content: object) -> None:
        """Store a JSON artifact."""
        self.log_text(path, json.dumps(content, indent=2) + "\n")

    def log_figure(self, path: str, figure: Figure) -> None:
        """Store a figure in the format that the path's suffix names; the figure stays open."""
        with _writing_artifacts():
            self._client.log_figure(self.run_id, figure, path)

    def log_model(self, model: nn.Module, example: NDArray[np.float32], weights: bytes) -> str | None:
        """Store the model's weights, and the model itself as a program that runs without its Python class.

        The program (`torch.export`, pt2) holds no pickle, is in evaluation mode on the CPU, takes any batch size and is
        differentiable with respect to its input. The caller's model is left as it is. A run keeps one model: logging
        again replaces it.

        Parameters
        ----------
        model : maps (N, C, H, W) images in [0, 1] to (N, K) logits; not wrapped in DDP.
        example : (n, C, H, W) float32 images in [0, 1], n >= 2.
        weights : the state in safetensors' format, stored as ``weights/model.safetensors``.

        Returns
        -------
        The model's URI for `mlflow.pytorch.load_model`, or None where the model cannot be traced (control flow that
        depends on the images). Then the weights alone are stored, and the tag ``distsens.model`` says why.
        """
        from distsens.tracking.model import ExportError, log_model

        self.log_bytes(WEIGHTS_ARTIFACT, weights)
        try:
            with _writing_artifacts():
                model_uri = log_model(self._client, self.run_id, model, example, step=self._last_epoch or 0)
        except ExportError as error:
            self.set_tag(MODEL_TAG, printable(f"weights only: {error}"))
            return None
        self.set_tag(MODEL_TAG, model_uri)
        return model_uri

    @contextmanager
    def watch_system(self, interval_s: float | None = None) -> Iterator[None]:
        """Record this host's CPU, memory, disk, network and GPU load as ``system/...`` while the block runs.

        Every ten seconds, unless MLflow's own variable or the caller says otherwise. A store that is down ends the
        recording without a word, and its last numbers are not waited for much longer than that.
        """
        if interval_s is None:
            interval_s = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or 10.0)
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        with asked_once(_SECONDS_FOR_SYSTEM_METRICS):
            monitor = SystemMetricsMonitor(
                self.run_id, sampling_interval=interval_s, resume_logging=True, tracking_uri=self.uri
            )
        monitor.start()
        try:
            yield
        finally:
            ending = threading.Thread(target=monitor.finish, daemon=True)
            ending.start()
            ending.join(_SECONDS_FOR_SYSTEM_METRICS)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"], message: str | None = None) -> None:
        """End the run, with the message as its tag ``distsens.outcome``. Only the first call counts.

        A run that another driver has taken over is left to it. If the store fails, its error is raised, and the
        guardian goes on trying to end the run for some minutes.
        """
        if self._ended:
            return
        self._ended = True
        if message is not None:  # it may name a file that is not UTF-8, which no store takes
            message = printable(message)
        try:
            if self._is_mine():
                if message is not None:
                    self.set_tag(OUTCOME_TAG, message)
                if self._guardian is not None:
                    end_trials(self._client, self._client.get_run(self.run_id).info.experiment_id, self.run_id)
                self._client.set_terminated(self.run_id, status)
        except BaseException:
            if self._guardian is not None:
                self._guardian.hand_over(status, message)
            raise
        if self._guardian is not None:
            self._guardian.dismiss()

    @contextmanager
    def _failed_unless(self, done: str) -> Iterator[None]:
        """What raises in the block ends the run, now or when the store answers again."""
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the guardian has it then, and why is raised below
                self.finish("FAILED", f"the run could not be {done}")
            raise

    def _is_mine(self) -> bool:
        check_still_there(self.uri)
        return bool(self._client.get_run(self.run_id).data.tags.get(DRIVER_TAG) == self._driver)


@contextmanager
def _writing_artifacts() -> Iterator[None]:
    """A folder that is full or cannot be written says itself neither which it is nor whose."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"MLflow's artifacts cannot be written: {reason(error)}") from error


def _as_metrics(metrics: Mapping[str, float], step: int) -> list[Metric]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    names = names_in_mlflow(metrics)
    return [
        Metric(names[name], value if math.isfinite(value) else math.nan, now, step) for name, value in metrics.items()
    ]
