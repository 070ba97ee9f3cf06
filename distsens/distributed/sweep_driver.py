"""The driver of a sweep: Ray Tune runs its trials, the best are judged by AutoAttack, the winner is trained anew."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ray import tune

from distsens.distributed.champion import Searched, judge_finalists, register_champion, train_champion, winner_of
from distsens.distributed.cluster import check_capacity_of_cluster, connected, places_of_cluster, start_here
from distsens.distributed.endings import Status, ended_whatever_happens, explain, in_one_line
from distsens.distributed.mailbox import Mailbox
from distsens.distributed.provenance import provenance_tags
from distsens.distributed.runs import new_name, pin_places
from distsens.distributed.shelf import Shelf
from distsens.distributed.signals import Caught, ignore_signals, signals_ask, signals_interrupt
from distsens.distributed.sweep_closing import close_sweep
from distsens.distributed.sweep_hooks import Telling, listening
from distsens.distributed.sweep_preflight import CheckedSweep
from distsens.distributed.sweep_record import TUNE_FOLDER, StoredSweep
from distsens.distributed.sweep_recording import SweepRecorder
from distsens.distributed.training import ray_notes
from distsens.distributed.trial import TrialKit, train_trial
from distsens.distributed.tuning import resources, scheduler, searcher
from distsens.experiment import merge
from distsens.redaction import without_secrets
from distsens.report.sweep import Outcome, SweepSummary, SweepView, count
from distsens.search import SweepPlan, meets_floor
from distsens.storage import address
from distsens.tracking import TrackedRun

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours takes more signals, see `signals_ask`
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The trials say themselves why they end, in a line.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # In a bucket it writes its state by pyarrow, whose checksums not every S3 server takes.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


@dataclass(frozen=True)
class _Tracking:
    """Where the trials' runs go, and what they are tagged with."""

    uri: str
    artifact_root: str | None
    tags: Mapping[str, str]


def run_sweep(
    recipe: Mapping[str, Any],
    checked: CheckedSweep,
    view: SweepView,
    open_training_view: Any,
    resumed: StoredSweep | None,
) -> tuple[SweepSummary, Outcome, int]:
    """Search to the end, or to a failure or interruption; the summary, what it counts, and the job's exit code.

    Parameters
    ----------
    recipe : as it was given, with ``search`` and ``sweep``.
    open_training_view : makes the view of the champion's training, for so many epochs.
    """
    began = time.monotonic()
    plan, message, code = checked.plan, None, 1
    status: Status = "failed"
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    recorder: SweepRecorder | None = None
    with ExitStack() as stack:
        stack.enter_context(in_one_line(view.say))
        caught = stack.enter_context(signals_interrupt())
        notes = stack.enter_context(ray_notes())
        stack.enter_context(connected(view.say))
        for experiment in (plan.base, plan.champion(plan.first)):
            check_capacity_of_cluster(experiment.workers, experiment.data.decoding_cpus)
        sweep = _open(recipe, checked, view, resumed)
        stack.enter_context(ended_whatever_happens(sweep.tracked, view.say))
        view.say(f"sweep {sweep.stored.name}")
        view.say(f"storage {sweep.stored.place.url}")
        view.say(f"tracking {without_secrets(sweep.tracked.uri)} run {sweep.tracked.run_id}")
        workers = plan.base.workers
        view.say(
            f"{plan.total} trials, {sweep.at_a_time} at a time ({workers.num} worker{'s' * (workers.num > 1)} each, "
            f"{workers.cpus} CPU{f' and {workers.gpus} GPU' if workers.gpus else ''} a worker)"
        )
        kit = TrialKit(plan, sweep.stored.place.url, start_here(Mailbox), start_here(Shelf))
        tracking = _Tracking(sweep.tracked.uri, checked.base.artifact_root, _tags(plan, sweep.stored.name))
        recorder = SweepRecorder(sweep.stored, plan, kit, view, tracking)
        try:
            with sweep.tracked.watch_system():
                whole = _search(sweep, kit, recorder, caught)
                if not whole:
                    raise KeyboardInterrupt
                judge_finalists(sweep, recorder.in_order)
                winner = winner_of(plan.sweep, recorder.in_order)
                if winner is None or winner.point is None:
                    message = "no trial has finished, so there is no champion"
                elif not meets_floor(plan.sweep, winner.point):
                    message = (
                        f"no trial that finished reaches sweep.clean_floor ({plan.sweep.clean_floor:g}), so there is "
                        f"no champion; the best, trial {winner.number}, has {winner.point.clean:.4g}"
                    )
                else:
                    with open_training_view(plan.champion(winner.values).training.epochs) as training_view:
                        sweep.champion = train_champion(sweep, winner, training_view, notes, caught)
                    sweep.champion = register_champion(sweep, winner, sweep.champion)
            if message is None:
                status, code = "finished", 0
        except KeyboardInterrupt:
            ignore_signals()
            status, message, code = "interrupted", f"interrupted by {caught.name}", caught.exit_code
        except Exception as error:
            message = explain(error, view.say)
        finally:
            ignore_signals()
            outcome = count(recorder.in_order, plan.space)
            ended = close_sweep(sweep, recorder, outcome, status, message)
            if ended[0] != status:
                code = 1
            status, message = ended
    trials = recorder.in_order
    summary = SweepSummary(
        status=status,
        message=message,
        sweep=sweep.stored.name,
        storage=sweep.stored.place.url,
        mlflow_uri=without_secrets(sweep.tracked.uri),
        mlflow_run_id=sweep.tracked.run_id,
        search={field: str(one) for field, one in plan.space.items()},
        settings=plan.sweep.model_dump(mode="json"),
        trials=[one.to_dict() for one in trials],
        best=outcome.best[0].trial if outcome.best else None,
        front=[one.trial for one in outcome.front],
        hypervolume=outcome.hypervolume,
        importance=outcome.importance,
        cost={
            "evaluations": outcome.evaluations,
            "seconds": outcome.seconds,
            "to_the_end": outcome.to_the_end,
            "saved": outcome.saved,
        },
        champion=sweep.champion,
        at_a_time=sweep.at_a_time,
        seconds=time.monotonic() - began,
    )
    return summary, outcome, code


def _tags(plan: SweepPlan, sweep: str) -> dict[str, str]:
    return {**provenance_tags(plan.base.workers, "jobs/tune.py"), "distsens.sweep_name": sweep}


def _open(recipe: Mapping[str, Any], checked: CheckedSweep, view: SweepView, resumed: StoredSweep | None) -> Searched:
    plan, base = checked.plan, checked.base
    places = places_of_cluster(plan.base.workers, plan.base.data.decoding_cpus)
    fitting = plan.total if places is None else max(1, places // plan.base.workers.num)
    at_a_time = min(fitting, plan.total, plan.sweep.concurrent or plan.total)
    if resumed is not None:
        tracked = TrackedRun.reopen(base.tracking_uri, resumed.mlflow_run_id, artifact_root=base.artifact_root)
        stored = replace(resumed, recipe=dict(recipe))
    else:
        name = new_name(plan.base)
        tracked = TrackedRun.create(
            base.tracking_uri,
            experiment=plan.base.tracking.experiment,
            name=name,
            params=plan.flat(),
            tags={**_tags(plan, name), "distsens.run": name},
            artifact_root=base.artifact_root,
        )
        pinned = pin_places(plan.base, base.storage, base.tracking_uri)
        kept = {section: getattr(pinned, section).model_dump(mode="json") for section in ("storage", "tracking")}
        stored = StoredSweep(name, base.storage.child(name), merge(recipe, kept), tracked.run_id)
    with ended_whatever_happens(tracked, view.say):
        stored.save()
    return Searched(plan, base, stored, tracked, view, at_a_time)


def _search(sweep: Searched, kit: TrialKit, recorder: SweepRecorder, caught: Caught) -> bool:
    """Let Ray Tune run the trials that are left; whether it came to the end."""
    recorder.settle()
    if recorder.draws.left:
        with (
            _restored(signal.SIGUSR1),
            listening(sweep.stored.name, recorder),
            recorder,
            signals_ask(caught, _ask_tune),
        ):
            _tuner(sweep, kit, recorder).fit()
        recorder.settle()
    recorder.check()
    # An interrupted Ray Tune returns as if all were well.
    known = recorder.in_order
    return len(known) == sweep.plan.total and not any(one.unfinished for one in known)


def _tuner(sweep: Searched, kit: TrialKit, recorder: SweepRecorder) -> tune.Tuner:
    plan, name, left = sweep.plan, sweep.stored.name, recorder.draws.left
    scores = recorder.draws.scores()
    population = recorder.draw_all() if plan.sweep.scheduler == "pbt" else None
    sweep.stored.place.delete(TUNE_FOLDER)
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(train_trial, kit=kit), resources(plan.base.workers)),
        param_space=dict.fromkeys(plan.space),  # the values come from the sweep's own draws
        tune_config=tune.TuneConfig(
            search_alg=searcher(name, sweep.at_a_time, population),
            scheduler=scheduler(plan, name, scores),
            num_samples=left,
        ),
        run_config=tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=_tune_path(sweep),
            failure_config=tune.FailureConfig(max_failures=plan.base.workers.max_failures),
            callbacks=[Telling(name)],
            verbose=0,
        ),
    )


def _tune_path(sweep: Searched) -> str:
    return address(sweep.stored.place.url).rstrip("/")


def _ask_tune() -> bool:
    """Have Ray Tune end in good order, by the handler that it has while it runs; whether it runs."""
    if not callable(signal.getsignal(signal.SIGUSR1)):
        return False
    signal.raise_signal(signal.SIGUSR1)
    return True


@contextmanager
def _restored(number: signal.Signals) -> Iterator[None]:
    """Ray Tune leaves its handler behind."""
    before = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, before)
