"""One training on a cluster: its workers are started by Ray Train, followed, and ended."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import ray
import ray.train

from distsens.data import Dataset, ImageFiles, ImageSet
from distsens.distributed.cluster import PLACES_TIMEOUT_S, start_here
from distsens.distributed.mailbox import Mailbox
from distsens.distributed.monitor import Event, News, Started, collect
from distsens.distributed.patience import Patience
from distsens.distributed.ray_internals import ControllerCallback
from distsens.distributed.retries import Trainer
from distsens.distributed.signals import signals_wait
from distsens.distributed.worker import Job, train_worker
from distsens.experiment import Experiment
from distsens.scratch import scratch_folder
from distsens.training import Progress

_SECONDS_BETWEEN_LOOKS = 0.25
_SECONDS_BEFORE_WAITING_IS_SAID = 20.0
_SECONDS_FOR_A_CONTROLLER = 30.0
_SECONDS_FOR_A_BUSY_CLUSTER = 24 * 3600


def share_data(dataset: Dataset) -> dict[str, ray.ObjectRef]:
    """Object references of ``train/images``, ``train/labels`` and so on, as a :class:`Job` takes them."""
    arrays = {}
    for name in ("train", "validation", "test"):
        split: ImageSet = getattr(dataset, name)
        in_files = isinstance(split.images, ImageFiles)
        arrays[f"{name}/images"] = ray.put(split.images if in_files else np.ascontiguousarray(split.images))
        arrays[f"{name}/labels"] = ray.put(np.ascontiguousarray(split.labels))
    return arrays


@contextmanager
def ray_notes() -> Iterator[str]:
    """A folder for the notes of Ray Train's controller, which runs on the driver's machine.

    Nothing reads them: checkpoints and metrics have their own ways to the storage and to the driver.
    """
    with scratch_folder() as folder:
        yield str(folder)


class Training:
    """``TorchTrainer.fit`` in a thread, so that the main one can follow, and answer signals."""

    def __init__(self, trainer: Trainer, mailbox: Any) -> None:
        self.mailbox = mailbox
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
        """Whether the workers, or what controls them, have not ended."""
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
        with signals_wait():
            self._end()

    def _end(self) -> None:
        deadline = time.monotonic() + _SECONDS_FOR_A_CONTROLLER
        while self.going_on and time.monotonic() < deadline:
            try:
                controller = ray.get(self.mailbox.controller.remote())
            except ray.exceptions.RayActorError:
                return  # The machine lost the mailbox, so nobody knows the controller.
            if controller is not None:
                ray.kill(controller)
            self._thread.join(_SECONDS_BETWEEN_LOOKS)


class _TellsOfController(ControllerCallback):
    """Tells the mailbox of Ray Train's controller, so that the driver can end it."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ARG002
        ray.get(self._mailbox.controlled_by.remote(ray.get_runtime_context().current_actor))


def start_training(job: Job, notes: str) -> Training:
    """Start the job's workers; ``notes`` is a folder of :func:`ray_notes`."""
    workers = job.experiment.workers
    mailbox = start_here(Mailbox)
    trainer = Trainer(
        train_worker,
        train_loop_config={"job": job, "mailbox": mailbox},
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
            callbacks=[_TellsOfController(mailbox)],
        ),
    )
    return Training(trainer, mailbox)


class Shown(Protocol):
    """What is shown of a training that is followed."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def doing(self, what: str, detail: str = "") -> None:
        """What is being done until something else is."""

    def step(self, progress: Progress) -> None:
        """Where the epoch stands."""


def follow(training: Training, experiment: Experiment, shown: Shown, take: Callable[[Event], None]) -> None:
    """Take what the workers tell until they are done; raise what ended them."""
    shown.doing("starting the workers")
    began, started, waiting_said = time.monotonic(), False, False
    patience = Patience(experiment.workers, experiment.data.decoding_cpus, shown.say)
    going_on = True
    while going_on:
        going_on = training.going_on
        news = collect(training.mailbox)
        if news == News((), None, None):
            patience.check()
        else:
            patience.heard()
        for event in news.events:
            started = started or isinstance(event, Started)
            take(event)
        if news.progress is not None:
            shown.step(news.progress)
        if news.tested is not None:
            shown.doing("testing", f"{news.tested} images")
        if not started and not waiting_said and time.monotonic() - began > _SECONDS_BEFORE_WAITING_IS_SAID:
            waiting_said = True
            shown.say("still waiting for the cluster to give the workers their place")
        if going_on:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    training.check()
