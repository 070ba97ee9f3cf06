"""What one Ray Train worker does: build its part, train, and judge the best epoch on the test split."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distsens import assembly
from distsens.data import Extra, Images, ImageSet, read_ahead
from distsens.distributed.logs import worker_log
from distsens.distributed.monitor import ActorTold, EndedEarly, EpochFinished, Event, Started, Stopped, Tested
from distsens.distributed.streaming import stream
from distsens.evaluation import Measurement, measure
from distsens.experiment import Experiment
from distsens.storage import RUN_FILE, Checkpoints, open_place
from distsens.training import (
    WEIGHTS,
    Progress,
    TrainingState,
    TrainingStoppedError,
    Watchers,
    check_classified,
    load_weights,
    stopping_at_nan,
    train,
)

_SECONDS_BETWEEN_PROGRESS = 0.5


@dataclass(frozen=True)
class Job:
    """What the driver hands every worker.

    name : of the run, for the logs.
    arrays : object references to ``train/images``, ``train/labels`` and so on for validation and test; the workers of
        a node read them from the same shared memory.
    run_url : the run's place in storage; only rank 0 reads and writes there.
    until : end after this epoch, though the experiment's schedules go on; None for the last.
    tested : whether the best epoch is judged on the test split at the end.
    """

    name: str
    experiment: Experiment
    shape: tuple[int, int, int]
    classes: int
    arrays: Mapping[str, ray.ObjectRef]
    extra: Extra
    run_url: str
    until: int | None = None
    tested: bool = True

    @property
    def last_epoch(self) -> int:
        """After which this job ends."""
        return self.experiment.training.epochs if self.until is None else self.until


class Told(Protocol):
    """Whom rank 0 tells how it goes."""

    def post(self, event: Event) -> None:
        """Something that must arrive, in order."""

    def progress(self, progress: Progress) -> None:
        """Where the epoch stands; the latest is enough."""

    def testing(self, images: int) -> None:
        """How many test images are done; the latest is enough."""


@dataclass(frozen=True)
class Seat:
    """A worker's place among the others.

    on_epoch : hears of every epoch on every worker, a barrier where there are several.
    """

    rank: int
    size: int
    device: torch.device
    on_epoch: Callable[[dict[str, float]], None]


def train_worker(config: Mapping[str, Any]) -> None:
    """Run by Ray Train on every worker."""
    context = ray.train.get_context()
    seat = Seat(
        context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device(), on_epoch=ray.train.report
    )
    run_worker(config["job"], seat, ActorTold(config["mailbox"]))


def run_worker(job: Job, seat: Seat, told: Told) -> None:
    """Train, and test where the job says so, as one of ``seat.size`` workers that torch.distributed joins."""
    torch.set_num_threads(job.experiment.workers.cpus)
    _Worker(job, seat, told).run()


class _Worker:
    def __init__(self, job: Job, seat: Seat, told: Told) -> None:
        self.job, self.told = job, told
        self.experiment = experiment = job.experiment
        self.rank, self.size, self.device, self._report = seat.rank, seat.size, seat.device, seat.on_epoch
        self.checkpoints = Checkpoints(open_place(job.run_url))
        self.log = worker_log(job.name, self.rank)
        self._last_progress = 0.0

        model = assembly.build_model(experiment, job.shape, job.classes)
        self.neurons = assembly.count_neurons(experiment, model, job.shape)
        self.layers = tuple(self.neurons)
        model = model.to(self.device)
        stabilizer = assembly.build_stabilizer(experiment, self.neurons, self.device)
        self.state = TrainingState(
            model,
            assembly.build_optimizer(experiment, model),
            assembly.build_average(experiment, model),
            stabilizer,
        )

    def run(self) -> None:
        """Resume from the newest checkpoint if there is one, train to the end, test."""
        state = self.state
        fault, skipped = self._resume()
        self.log.info("begins", extra={"workers": self.size, "device": str(self.device), "epoch": state.epoch})
        if fault is not None:
            self.log.error(str(fault))
            if isinstance(fault, OSError):
                raise fault
            self._post(Stopped(fault))
            return
        try:
            self._post(Started(self.size, str(self.device), tuple(state.history), skipped))
            ended_early = self._train()
            if ended_early is not None:
                self._post(EndedEarly(state.epoch, ended_early))
            if self.job.tested:
                self._test()
        except TrainingStoppedError as stopped:
            # Every worker stops here by itself, at the same step: a restart would only come to the same end.
            self.log.error(str(stopped))
            self._post(Stopped(f"{stopped}; last good checkpoint: {self._newest_checkpoint()}"))

    def _train(self) -> str | None:
        """Train to the end; why it ended early, if it did."""
        experiment, state = self.experiment, self.state
        images, labels = self._split("train")
        plan = assembly.build_plan(experiment, len(images), self._split("validation")[1].numpy(), self.job.extra)
        step = assembly.build_step(experiment, state, self._distributed(state.model), self.layers)
        watchers = Watchers(self._validate, self._on_step, self._on_epoch, self._recall)
        cpus, shared = experiment.data.decoding_cpus, self.job.arrays["train/images"]
        read = partial(stream, shared=shared, tasks=math.ceil(cpus / self.size)) if cpus else read_ahead
        return train(state, step, images, labels, plan, watchers, self.job.until, read)

    def _distributed(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model) if self.size > 1 else model

    def _split(self, name: str) -> tuple[Images, Tensor]:
        images, labels = ray.get([self.job.arrays[f"{name}/images"], self.job.arrays[f"{name}/labels"]])
        return ImageSet(images, labels).tensors()

    def _resume(self) -> tuple[str | OSError | None, tuple[str, ...]]:
        """Take up the newest complete checkpoint, which rank 0 reads for all.

        Returns why it cannot, for all workers to stop or (an error that may pass) to be started anew, and which newer
        checkpoints it had to skip.
        """
        fault, files, skipped = self._from_rank_zero(self._stored() if self.rank == 0 else None)
        if files is not None:
            self.state.load_files(files)
        return fault, tuple(skipped)

    def _stored(self) -> tuple[str | OSError | None, dict[str, bytes] | None, tuple[str, ...]]:
        """Why the run's storage is of no use from here, the files of the newest checkpoint, the checkpoints skipped.

        A run whose own record is not there is on a disk of another machine; no worker may begin it anew here.
        """
        try:
            if not self.checkpoints.place.keys(RUN_FILE):
                fault = (
                    f"the storage {self.job.run_url} is not the one that the driver wrote to, seen from the first "
                    f"worker's machine: give a storage.path that all machines share"
                )
                return fault, None, ()
            found = self.checkpoints.newest()
        except OSError as error:
            return OSError(f"the storage cannot be read from the first worker's machine: {error}"), None, ()
        return None, found.checkpoint.files if found.checkpoint else None, found.skipped

    def _from_rank_zero(self, content: Any) -> Any:
        box = [content]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def _validate(self) -> Measurement:
        return self._measure("validation", assembly.build_validation_attacks(self.experiment, self.state.history))

    def _measure(self, split: str, attacks: Mapping[str, Any], *, tell: bool = False) -> Measurement:
        images, labels = self._split(split)
        return measure(
            self.state.classifier,
            images,
            labels,
            attacks,
            layers=self.layers,
            neurons=self.neurons,
            batch_size=math.ceil(self.experiment.training.batch_size / self.size),
            seed=self.experiment.seed,
            device=self.device,
            on_images=(lambda done: self._tell_testing(done * self.size)) if tell else lambda _: None,
        )

    def _test(self) -> None:
        """Judge the best epoch's weights, once, by the attacks that were used neither to train nor to select."""
        best = self.state.best.epoch
        weights = self.checkpoints.load(best).files[WEIGHTS] if self.rank == 0 else None
        load_weights(self.state.classifier, self._from_rank_zero(weights))
        attacks = {
            "pgd": assembly.build_attack(self.experiment, self.experiment.test),
            "fgsm": assembly.build_fgsm(self.experiment),
        }
        with stopping_at_nan("on the test split"):
            measurement = self._measure("test", attacks, tell=True)
        check_classified(measurement.not_finite, measurement.images, "test split")
        self.log.info("tested", extra={"epoch": best, "images": measurement.images, **measurement.robust_accuracies})
        self._post(Tested(best, measurement))

    def _on_epoch(self, state: TrainingState, best: bool) -> None:
        """Store a checkpoint where one is due, tell the driver and Ray."""
        record, policy = state.history[-1], self.experiment.checkpoint
        self.log.info("epoch", extra={"epoch": record.epoch, "best": best, **_logged(record.metrics)})
        due = record.epoch > 0 and (best or record.epoch % policy.every == 0 or record.epoch == self.job.last_epoch)
        if self.rank == 0:
            if due:
                self.checkpoints.save(
                    record.epoch,
                    state.to_files(),
                    experiment=self.experiment.digest(),
                    metrics=record.metrics,
                )
                self.checkpoints.prune(policy.keep, protect=[state.best.epoch])
            self._post(EpochFinished(record, best, due))
        self._report(dict(record.metrics))

    def _recall(self, epoch: int) -> dict[str, bytes]:
        """Files of a stored epoch, which rank 0 reads for all."""
        files: dict[str, bytes] = self._from_rank_zero(self.checkpoints.load(epoch).files if self.rank == 0 else None)
        return files

    def _newest_checkpoint(self) -> str:
        complete = self.checkpoints.manifests() if self.rank == 0 else []
        return f"epoch {complete[-1].epoch} in {self.job.run_url}" if complete else "none"

    def _on_step(self, progress: Progress) -> None:
        now = time.monotonic()
        due = now - self._last_progress > _SECONDS_BETWEEN_PROGRESS or progress.step == progress.steps
        if self.rank == 0 and due:
            self._last_progress = now
            self.told.progress(progress)

    def _tell_testing(self, images: int) -> None:
        if self.rank == 0:
            self.told.testing(images)

    def _post(self, event: Event) -> None:
        if self.rank == 0:
            self.told.post(event)


def _logged(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of an epoch's metrics those that are read in a log: neither layers nor schedules."""
    return {name: value for name, value in metrics.items() if name.startswith(("loss", "validation/", "throughput/"))}
