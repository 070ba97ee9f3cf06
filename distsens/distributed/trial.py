"""One trial of a sweep: it trains, rung by rung, in a Ray Tune actor, and can be ended and taken up at any moment."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray
import ray.train
import torch
from ray import tune

from distsens import assembly
from distsens.distributed.endings import cause
from distsens.distributed.monitor import EpochFinished, Event, Started, Stopped
from distsens.distributed.retries import passes
from distsens.distributed.shelf import SharedData
from distsens.distributed.sweep_events import Began, GaveUp, RungEnded, TrialEvent
from distsens.distributed.sweep_record import POINTER_FILE, RESULT_FILE, SWEEP_FILE, Pointer, RungDocument
from distsens.distributed.training import follow, ray_notes, start_training
from distsens.distributed.worker import Job, Seat, run_worker
from distsens.errors import InputError
from distsens.experiment import CheckpointPolicy, Experiment
from distsens.scratch import scratch_folder
from distsens.search import FAILED, Point, Sweep, SweepPlan, score
from distsens.storage import (
    CheckpointError,
    Checkpoints,
    Place,
    RunRecord,
    open_place,
    place_name,
    write_json,
    write_run,
)
from distsens.strict_json import load_as
from distsens.training import EpochRecord, Progress, best_epoch, stored_history

_FORMAT = 1


class DriverGoneError(RuntimeError):
    """The sweep's driver has ended, and with it what a trial tells its news to: no fault of the trial's."""


class TrialEndedError(RuntimeError):
    """An attempt has ended by what may pass: Ray Tune is to try again."""


@dataclass(frozen=True)
class RungResult:
    """How a trial's training at a rung ended: its searched values, its epochs, or why it failed."""

    values: Mapping[str, Any]
    history: tuple[EpochRecord, ...]
    failure: str | None

    def ended(self, sweep: Sweep, *, last_rung: bool) -> RungEnded:
        """What it is worth by the sweep's goal, in its best epoch.

        Of a population it is the newest epoch that counts, and everywhere the floor: the best may be another trial's,
        trained with other values, and a trial below the floor is none to go on from.
        """
        population = sweep.scheduler == "pbt"
        judged = self.history[-1] if population and self.history else best_epoch(self.history)
        if self.failure is not None or judged is None:
            return RungEnded(0.0, 0.0, FAILED, self.failure or "it has trained no epoch", last_rung)
        point = Point(judged.metrics["validation/clean_accuracy"], judged.metrics["validation/robust_accuracy"])
        worth = score(sweep, point, last_rung=last_rung or population)
        return RungEnded(point.clean, point.robust, worth, None, last_rung)

    def save(self, place: Place) -> None:
        """Write it down, which makes the rung done."""
        history = [{"epoch": one.epoch, "metrics": one.metrics, "alarm": one.alarm} for one in self.history]
        document = {"format": _FORMAT, "values": dict(self.values), "history": history, "failure": self.failure}
        write_json(place, RESULT_FILE, document)

    @staticmethod
    def load(place: Place) -> RungResult | None:
        """What :meth:`save` wrote, or None."""
        try:
            document = load_as(RungDocument, place.get(RESULT_FILE))
        except FileNotFoundError:
            return None
        history = tuple(EpochRecord(one.epoch, one.metrics, alarm=one.alarm) for one in document.history)
        return RungResult(document.values, history, document.failure)


@dataclass(frozen=True)
class TrialKit:
    """What every trial of a sweep is given.

    url : of the sweep's place in storage.
    mailbox, shelf : actors, see there.
    """

    plan: SweepPlan
    url: str
    mailbox: Any
    shelf: Any

    def place(self, trial: str) -> Place:
        """Where a trial keeps what it has done."""
        return open_place(self.url).child(f"trials/{trial}")

    def now(self, url: str) -> Place:
        """Where a training of the sweep is whose address was written down, perhaps before the sweep was moved."""
        return self.place(url.rpartition("/trials/")[2])


def train_trial(values: dict[str, Any], kit: TrialKit) -> None:
    """The trainable that Ray Tune runs: a trial with these values by dotted field."""
    name: str = ray.get(kit.mailbox.name.remote(tune.get_context().get_trial_id()))
    trial = _Trial(name, values, kit)
    train = _train_in_intervals if kit.plan.sweep.scheduler == "pbt" else _train_in_rungs
    try:
        train(trial)
    except DriverGoneError:
        raise
    except Exception as error:
        # Told in words, for not every error of others travels.
        raise TrialEndedError(trial.gave_up(error)) from None


def _train_in_rungs(trial: _Trial) -> None:
    """A whole training at each rung; Ray Tune hears of each at its end, and may then end the trial."""
    plan, epochs = trial.kit.plan, 0
    for rung in range(1, plan.rungs + 1):
        experiment = partial(plan.experiment, trial.values, rung)
        result = trial.train(rung, experiment, last_training(trial.place, plan, trial.values, rung), epochs)
        told = trial.verdict(rung, result, last_rung=rung == plan.rungs)
        tune.report(told)
        if result.failure is not None:
            return
        epochs += len(result.history) - 1


def _train_in_intervals(trial: _Trial) -> None:
    """One training that Ray Tune hears of after every few epochs, when it may be sent on from another trial's state."""
    plan = trial.kit.plan
    experiment = plan.experiment(trial.values)
    # Another trial may go on from any of them, however much later.
    experiment = experiment.model_copy(
        update={"checkpoint": CheckpointPolicy(every=plan.sweep.interval, keep=experiment.training.epochs)}
    )
    place = last_training(trial.place, plan, trial.values, 1)
    done = 0
    if (pointer := _sent_on_from() or standing(trial.place)) is not None:
        done, theirs = pointer.epoch, trial.kit.now(pointer.url)
        _stand(trial, theirs, done)
        _take_over(theirs, done, place, experiment)
    last = experiment.training.epochs
    while done < last:
        done = min(done + plan.sweep.interval, last)
        result = trial.train(1, lambda: experiment, place, 0, until=done)
        told = {**trial.verdict(1, result, last_rung=done == last), "epoch": done}
        if result.failure is not None:
            tune.report(told)
            return
        # One that ended early stays at its last epoch.
        pointer = _stand(trial, place, result.history[-1].epoch)
        with _checkpoint(pointer) as checkpoint:
            tune.report(told, checkpoint=checkpoint)


def _take_over(source: Place, epoch: int, place: Place, experiment: Experiment) -> None:
    """Put the state of this epoch, of another training, where this one looks for its own.

    With it goes the best epoch before it, which a rollback takes up.
    """
    if source.url == place.url:
        return
    theirs, mine = Checkpoints(source), Checkpoints(place)
    newest = theirs.load(epoch).files
    best = best_epoch(stored_history(newest))
    if best is not None and best.epoch != epoch:
        mine.save(best.epoch, theirs.load(best.epoch).files, experiment=experiment.digest(), metrics={})
    mine.save(epoch, newest, experiment=experiment.digest(), metrics={})


def standing(place: Place) -> Pointer | None:
    """From where a trial of a population would go on that keeps what it does at this place; None from the beginning."""
    try:
        return load_as(Pointer, place.get(POINTER_FILE))
    except FileNotFoundError:
        return None


def _stand(trial: _Trial, source: Place, epoch: int) -> Pointer:
    """Write down from where the trial would go on, for a resumed sweep."""
    pointer = Pointer(values=dict(trial.values), url=source.url, epoch=epoch)
    write_json(trial.place, POINTER_FILE, pointer.model_dump())
    return pointer


def _sent_on_from() -> Pointer | None:
    """The state, perhaps of another trial, that Ray Tune has a trial go on from in this session."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return standing(open_place(folder))


@contextmanager
def _checkpoint(pointer: Pointer) -> Iterator[tune.Checkpoint]:
    """Ray Tune's checkpoint of a trial: the address of ours, which is complete or absent and verified."""
    with scratch_folder() as folder:
        write_json(open_place(str(folder)), POINTER_FILE, pointer.model_dump())
        yield tune.Checkpoint.from_directory(str(folder))


class _Trial:
    def __init__(self, name: str, values: Mapping[str, Any], kit: TrialKit) -> None:
        self.name, self.values, self.kit = name, values, kit
        self.place = kit.place(name)

    def train(
        self, rung: int, experiment: Callable[[], Experiment], place: Place, epochs: int, until: int | None = None
    ) -> RungResult:
        """Train at a rung, or read how an earlier attempt ended. Values that make no experiment are a failure too.

        What may pass is raised and not written down: the next attempt goes on from the last checkpoint.
        """
        done = RungResult.load(place)
        if done is not None and (until is None or done.failure is not None or len(done.history) > until):
            self._post(rung, Began(self.values, epochs))
            for record in done.history:
                self._post(rung, EpochFinished(record, best=False, saved=True))
            return done
        self._post(rung, Began(self.values, epochs))
        account = _Account(self, rung)
        try:
            self._run(experiment(), place, until, account)
        except Exception as error:
            if isinstance(error, DriverGoneError) or passes(error):
                raise
            # A trial that cannot be trained is a result of the sweep, whatever the reason.
            account.failure = _in_a_line(error)
        result = RungResult(self.values, tuple(account.history), account.failure)
        result.save(place)
        return result

    def verdict(self, rung: int, result: RungResult, *, last_rung: bool) -> dict[str, Any]:
        """What a rung's end is worth, told to the driver, and for Ray Tune."""
        ended = result.ended(self.kit.plan.sweep, last_rung=last_rung)
        self._post(rung, ended)
        return {
            "trial": self.name,
            "rung": rung,
            "clean_accuracy": ended.clean,
            "robust_accuracy": ended.robust,
            "score": ended.score,
            "failure": ended.failure or "",
        }

    def _run(self, experiment: Experiment, place: Place, until: int | None, account: _Account) -> None:
        """Train with workers of their own, or, where one is enough, in this very actor."""
        if not open_place(self.kit.url).keys(SWEEP_FILE):
            allowed = "it is not what the driver wrote to, seen from this machine: give one that all machines share"
            # Of this machine: another one, or this one with the folder mounted, may do.
            raise OSError(str(InputError("storage.path", self.kit.url, allowed)))
        write_run(place, RunRecord(experiment.model_dump(mode="json"), mlflow_run_id=""))
        data: SharedData = ray.get(self.kit.shelf.data.remote(experiment))
        assembly.build_model(experiment, data.shape, data.classes)  # says in one line what a worker would at length
        name = f"{place_name(self.kit.url)}/{self.name}/{place_name(place.url)}"
        job = Job(name, experiment, data.shape, data.classes, data.arrays, data.extra, place.url, until, tested=False)
        if experiment.workers.num == 1:
            device = torch.device("cuda" if experiment.workers.gpus else "cpu")
            run_worker(job, Seat(0, 1, device, on_epoch=lambda _: None), account)
        else:
            with ray_notes() as notes, closing(start_training(job, notes)) as training:
                follow(training, experiment, account, account.post)

    def gave_up(self, error: Exception) -> str:
        """Tell the driver, in the line that is returned, what has ended this attempt, of which Ray Tune says little."""
        said = _in_a_line(error)
        self._post(0, GaveUp(said))
        return said

    def _post(self, rung: int, event: Event | Began | RungEnded | GaveUp) -> None:
        try:
            ray.get(self.kit.mailbox.post.remote(pickle.dumps(TrialEvent(self.name, rung, event))))
        except ray.exceptions.RayActorError:
            raise DriverGoneError(self.kit.url) from None


def _in_a_line(error: Exception) -> str:
    if isinstance(error, (ray.train.TrainingFailedError, ray.exceptions.RayError)):
        return cause(error)
    if isinstance(error, (InputError, CheckpointError, OSError)):
        return str(error)
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


@dataclass
class _Account:
    """What a trial's workers tell: kept for the verdict, and passed on to the driver of the sweep."""

    trial: _Trial
    rung: int
    history: list[EpochRecord] = field(default_factory=list)
    failure: str | None = None

    def post(self, event: Event) -> None:
        """Keep what it means; neurons are too many to follow for each trial."""
        match event:
            case Started():
                self.history = [replace(record, sensitivity={}) for record in event.history]
                event = replace(event, history=tuple(self.history))
            case EpochFinished(record, best, saved):
                self.history.append(replace(record, sensitivity={}))
                event = EpochFinished(self.history[-1], best, saved)
            case Stopped(message):
                self.failure = message
        self.trial._post(self.rung, event)

    def progress(self, progress: Progress) -> None:
        """Pass it on."""
        self.trial.kit.mailbox.note.remote(self.trial.name, pickle.dumps(progress))

    def step(self, progress: Progress) -> None:
        """Pass it on."""
        self.progress(progress)

    def testing(self, images: int) -> None:
        """Trials are not tested."""

    def say(self, line: str) -> None:
        """Trials are too many for lines of their own."""

    def doing(self, what: str, detail: str = "") -> None:
        """Trials are too many for lines of their own."""


def trial_results(kit: TrialKit, trial: str, values: Mapping[str, Any]) -> Iterator[tuple[int, RungResult]]:
    """The rungs that a trial has done, in order, with how each ended."""
    for rung in range(1, kit.plan.rungs + 1):
        result = RungResult.load(last_training(kit.place(trial), kit.plan, values, rung))
        if result is None:
            return
        yield rung, result


def last_training(place: Place, plan: SweepPlan, values: Mapping[str, Any], rung: int) -> Place:
    """Where a trial of this place trains at this rung; in a population, where values change, with these values."""
    return place.child(plan.experiment(values).digest()[:12] if plan.sweep.scheduler == "pbt" else f"rung-{rung}")
