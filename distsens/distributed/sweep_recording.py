"""What the driver writes down of a sweep's trials: to storage, to an MLflow run each, and to the view."""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray

from distsens.distributed.endings import EndedError
from distsens.distributed.monitor import EpochFinished, Started
from distsens.distributed.patience import Patience
from distsens.distributed.sweep_draws import Draws
from distsens.distributed.sweep_events import Began, GaveUp, RungEnded, TrialEvent
from distsens.distributed.sweep_record import StoredSweep
from distsens.distributed.trial import RungResult, TrialKit, standing, trial_results
from distsens.report.sweep import RungState, SweepView, TrialState
from distsens.search import SweepPlan
from distsens.tracking import TrackedRun
from distsens.training import EpochRecord, Progress

_SECONDS_BETWEEN_LOOKS = 0.5


class TooManyFailedError(EndedError):
    """More trials have failed than the sweep allows."""


@dataclass(frozen=True)
class _Ended:
    """Ray Tune has done with a trial: because it returned or was stopped, or because its process died."""

    trial: str
    failure: str | None


class SweepRecorder:
    """Follows the trials from a thread of its own while Ray Tune has the main one; a context manager.

    Each event is written down once: a trial's metrics go to its own MLflow run, a child of the sweep's, its state to
    storage and to the view. Only this thread uses MLflow while it runs.
    """

    def __init__(self, stored: StoredSweep, plan: SweepPlan, kit: TrialKit, view: SweepView, tracking: Any) -> None:
        self.trials = {trial: _taken_up(state) for trial, state in stored.trials().items()}
        self.error: Exception | None = None
        self._stored, self._plan, self._kit, self._view, self._tracking = stored, plan, kit, view, tracking
        self._runs: dict[str, TrackedRun] = {}
        self._offsets: dict[str, int] = {}
        self._given_up: dict[str, str] = {}
        self._ends: queue.SimpleQueue[_Ended] = queue.SimpleQueue()
        self._steps: dict[str, Progress] = {}
        self._draws: Draws | None = None
        self._population: list[TrialState] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> SweepRecorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def in_order(self) -> list[TrialState]:
        """The trials as they were drawn."""
        return sorted(self.trials.values(), key=lambda one: one.number)

    @property
    def draws(self) -> Draws:
        """Who hands out the trials of this session."""
        if self._draws is None:
            self._draws = Draws(self._plan, self._stored, self.trials)
        return self._draws

    def draw(self, handle: str) -> dict[str, Any]:
        """The values of the next trial, which from now on is known by this handle."""
        state = self.draws.next()
        self._call(handle, state)
        return dict(state.values)

    def draw_all(self) -> list[dict[str, Any]]:
        """The values of all trials that are left; :meth:`added` tells their handles in this order."""
        self._population = [self.draws.next() for _ in range(self.draws.left)]
        return [dict(one.values) for one in self._population]

    def added(self, handle: str) -> None:
        """Ray Tune has made the next trial of a population."""
        self._call(handle, self._population.pop(0))

    def _call(self, handle: str, state: TrialState) -> None:
        self.draws.call(handle, state)
        ray.get(self._kit.mailbox.call.remote(handle, state.trial))

    def reported(self, handle: str, result: Mapping[str, Any]) -> None:
        """A trial has ended, and this is the last that it reported."""
        self.draws.ended(handle, result)

    def ended(self, handle: str, failure: str | None) -> None:
        """Ray Tune has done with this trial."""
        self._ends.put(_Ended(self.draws.name(handle), failure))

    def check(self) -> None:
        """Raise, in Ray Tune's thread, what must end the sweep."""
        if self.error is not None:
            raise self.error
        failed = [one for one in self.in_order if one.status == "failed"]
        if len(failed) > self._plan.sweep.max_failed:
            last = failed[-1]
            raise TooManyFailedError(
                f"{len(failed)} trials failed, more than sweep.max_failed ({self._plan.sweep.max_failed}); "
                f"trial {last.number}: {last.failure}"
            )

    def settle(self) -> None:
        """Write down what nobody has told of trials that came to their end, as under a driver that was killed."""
        for state in self.in_order:
            if not state.unfinished:
                continue
            if (pointer := standing(self._kit.place(state.trial))) is not None:
                state.values = pointer.values
            results = self._results(state.trial, state.values)
            if results and (results[-1][1].failure is not None or self._is_last(state, *results[-1])):
                self._tell(state.trial, results)

    def _is_last(self, state: TrialState, rung: int, result: RungResult) -> bool:
        """Whether it is how the trial's last training ended: a population's tells of itself at every interval."""
        epochs = self._plan.experiment(state.values).training.epochs
        population = self._plan.sweep.scheduler == "pbt"
        return rung == self._plan.rungs and (
            not population or (bool(result.history) and result.history[-1].epoch >= epochs)
        )

    def _tell(self, trial: str, results: Sequence[tuple[int, RungResult]]) -> None:
        for rung, result in results:
            epochs = sum(one.epochs for number, one in self._rungs(trial).items() if number < rung)
            self._take(TrialEvent(trial, rung, Began(result.values, epochs)))
            for record in result.history:
                self._take(TrialEvent(trial, rung, EpochFinished(record, best=False, saved=True)))
            self._take(TrialEvent(trial, rung, result.ended(self._plan.sweep, last_rung=rung == self._plan.rungs)))

    def _results(self, trial: str, values: dict[str, Any]) -> list[tuple[int, RungResult]]:
        return list(trial_results(self._kit, trial, values))

    def interrupt(self) -> None:
        """Those that still train will be taken up by a resumed sweep."""
        for state in [one for one in self.in_order if one.status == "running"]:
            state.status, state.failure = "interrupted", None
            self._stored.keep(state)

    def end_runs(self) -> None:
        """The MLflow runs of trials that have not ended; they end with that of the sweep, too, but do not say why."""
        while self._runs:
            self._runs.popitem()[1].finish("KILLED", "the sweep ended before it did")

    def _rungs(self, trial: str) -> dict[int, RungState]:
        return self.trials[trial].rungs if trial in self.trials else {}

    def _follow(self) -> None:
        patience = Patience(self._plan.base.workers, self._plan.base.data.decoding_cpus, self._view.say)
        try:
            over = False
            while not over:
                over = self._over.wait(_SECONDS_BETWEEN_LOOKS)
                # What Ray Tune says of a trial comes after the trial's own words: those are in the mailbox by then.
                ends = self._taken_ends()
                letters, notes = ray.get(self._kit.mailbox.collect.remote())
                if letters or notes or ends:
                    patience.heard()
                else:
                    patience.check()  # Ray Tune waits for machines that are lost for ever, and says nothing
                self._steps |= {trial: pickle.loads(step) for trial, step in notes.items()}
                for letter in letters:
                    self._take(pickle.loads(letter))
                for end in ends:
                    self._end(end)
                self._view.update(self.in_order, {trial: _step(one) for trial, one in self._steps.items()})
        except Exception as error:  # raised where Ray Tune can be ended
            self.error = error

    def _taken_ends(self) -> list[_Ended]:
        ends = []
        while not self._ends.empty():
            ends.append(self._ends.get())
        return ends

    def _take(self, told: TrialEvent) -> None:
        match told.event:
            case Began(values, epochs):
                self._began(told.trial, told.rung, dict(values), epochs)
            case Started(_, _, history, _):
                for record in history:
                    self._epoch(told.trial, told.rung, record)
            case EpochFinished(record, _, _):
                self._epoch(told.trial, told.rung, record)
            case RungEnded():
                self._rung_ended(told.trial, told.rung, told.event)
            case GaveUp(failure):
                self._given_up[told.trial] = failure

    def _began(self, trial: str, rung: int, values: dict[str, Any], epochs: int) -> None:
        state = self.trials[trial]
        state.values, state.status, state.failure, state.passing = values, "running", None, False
        state.rungs.setdefault(rung, RungState())
        self._offsets[trial] = epochs
        if trial not in self._runs:
            self._open_run(state)
        self._stored.keep(state)

    def _open_run(self, state: TrialState) -> None:
        uri, sweep = self._tracking.uri, self._stored.mlflow_run_id
        known = state.mlflow_run_id or TrackedRun.of_trial(uri, sweep, state.trial)
        if known is not None:
            self._runs[state.trial], state.mlflow_run_id = TrackedRun.reopen(uri, known), known
            return
        base = self._plan.base
        run = TrackedRun.create(
            uri,
            experiment=base.tracking.experiment,
            name=f"{self._stored.name}-{state.number:03d}",
            params={**base.flat(), **state.values},
            tags=self._tracking.tags,
            artifact_root=self._tracking.artifact_root,
            sweep=sweep,
            trial=state.trial,
        )
        self._runs[state.trial], state.mlflow_run_id = run, run.run_id

    def _epoch(self, trial: str, rung: int, record: EpochRecord) -> None:
        state = self.trials[trial]
        one = state.rungs[rung]
        if record.epoch > one.epochs:
            one.epochs = record.epoch
            seconds = record.metrics.get("throughput/epoch_seconds", 0.0)
            one.seconds += seconds
            one.evaluations += seconds * record.metrics.get("throughput/gradient_evaluations_per_second", 0.0)
        offset = self._offsets[trial]
        if record.epoch == 0 and offset > 0:
            return  # the untrained network of a further rung has the step of the last rung's end
        searched = {
            f"searched/{field}": float(value)
            for field, value in state.values.items()
            if self._plan.sweep.scheduler == "pbt" and isinstance(value, int | float)
        }
        self._runs[trial].log_epoch(offset + record.epoch, {**record.metrics, **searched, "rung": float(rung)})

    def _rung_ended(self, trial: str, rung: int, ended: RungEnded) -> None:
        state = self.trials[trial]
        one = state.rungs[rung]
        one.score = ended.score
        if ended.failure is not None:
            self._finish(state, "failed", "FAILED", ended.failure)
            return
        one.clean, one.robust = ended.clean, ended.robust
        numbers = {"clean_accuracy": ended.clean, "robust_accuracy": ended.robust, "score": ended.score}
        self._runs[trial].log_result({**numbers, "rungs_done": float(rung)})
        if ended.last:
            self._finish(state, "finished", "FINISHED", None)
        self._stored.keep(state)

    def _end(self, end: _Ended) -> None:
        state = self.trials[end.trial]
        if not state.unfinished:
            return
        if state.trial not in self._runs:  # it ended before it could say that it began
            self._open_run(state)
        if end.failure is not None:
            state.passing = True
            self._finish(state, "failed", "FAILED", self._given_up.get(end.trial, end.failure))
        else:
            self._finish(state, "stopped", "FINISHED", f"stopped at rung {state.rungs_done} of {self._plan.rungs}")

    def _finish(
        self,
        state: TrialState,
        status: Literal["stopped", "finished", "failed"],
        run_status: Literal["FINISHED", "FAILED"],
        message: str | None,
    ) -> None:
        state.status = status
        state.failure = message if status == "failed" else None
        # Kept last: what MLflow has not heard, because it was down, a resumed sweep tells it.
        run = self._runs.pop(state.trial, None)
        if run is not None:
            run.finish(run_status, message)
        self._stored.keep(state)


def _taken_up(state: TrialState) -> TrialState:
    """A trial of an earlier session as this one finds it: what may have passed is no failure yet."""
    return replace(state, status="interrupted", failure=None, passing=False) if state.passing else state


def _step(progress: Progress) -> str:
    return f"epoch {progress.epoch}, {progress.step}/{progress.steps}, {progress.images_per_second:,.0f} images/s"
