"""The driver of a sweep: Ray Tune runs its trials, the best are judged by AutoAttack, the winner is trained anew."""

from __future__ import annotations

import os
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import ray
from ray import tune

from distsens.distributed.board import Board, Shelf
from distsens.distributed.cluster import check_capacity_of_cluster, connected, places_of_cluster, start_here
from distsens.distributed.driver import train_on_cluster
from distsens.distributed.examination_preflight import check_examination, pool
from distsens.distributed.examiners import Assignment, Examiners, share_split
from distsens.distributed.preflight import Checked, check
from distsens.distributed.provenance import provenance_tags
from distsens.distributed.runs import new_name
from distsens.distributed.signals import Caught, ignore_signals, signals_interrupt
from distsens.distributed.sweep_preflight import CheckedSweep
from distsens.distributed.sweep_record import TUNE_FOLDER, StoredSweep
from distsens.distributed.sweep_recording import SweepRecorder, TellsRecorder, TooManyFailedError
from distsens.distributed.training import ray_notes
from distsens.distributed.trial import TrialKit, train_trial
from distsens.distributed.tuning import param_space, resources, scheduler, searcher
from distsens.errors import InputError
from distsens.evaluation import Ledger
from distsens.examination import Examination
from distsens.report import View
from distsens.report.sweep import (
    Outcome,
    SweepSummary,
    SweepView,
    TrialState,
    at_the_end,
    count,
    sweep_page,
    sweep_plates,
    sweep_sentences,
)
from distsens.search import SweepPlan
from distsens.storage import CheckpointError
from distsens.tracking import TakenOverError, TrackedRun, is_store_error, reason, without_password

_ALIAS = "champion"
_SHARD = 20
_SECONDS_BETWEEN_LOOKS = 0.5
# Ray Tune writes down at least this often what a resumed sweep begins with.
_SETTINGS = {
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
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


@dataclass
class _Sweep:
    """A sweep that goes on."""

    plan: SweepPlan
    checked: Checked
    stored: StoredSweep
    tracked: TrackedRun
    view: SweepView
    at_a_time: int
    champion: dict[str, Any] | None = None


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
    plan, status, message, code = checked.plan, "failed", None, 1
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    recorder: SweepRecorder | None = None
    with ExitStack() as stack:
        stack.enter_context(signals_interrupt())
        notes = stack.enter_context(ray_notes())
        stack.enter_context(connected())
        caught = stack.enter_context(signals_interrupt())
        check_capacity_of_cluster(plan.base.workers)
        sweep = _open(recipe, checked, view, resumed)
        view.say(f"sweep {sweep.stored.name}")
        view.say(f"storage {sweep.stored.place.url}")
        view.say(f"tracking {without_password(sweep.tracked.uri)} run {sweep.tracked.run_id}")
        workers = plan.base.workers
        view.say(
            f"{plan.total} trials, {sweep.at_a_time} at a time ({workers.num} worker{'s' * (workers.num > 1)} each, "
            f"{workers.cpus} CPU{f' and {workers.gpus} GPU' if workers.gpus else ''} a worker)"
        )
        kit = TrialKit(plan, sweep.stored.place.url, start_here(Board), start_here(Shelf))
        tracking = _Tracking(sweep.tracked.uri, checked.base.artifact_root, _tags(plan, sweep.stored.name))
        recorder = SweepRecorder(sweep.stored, plan, kit, view, tracking)
        try:
            with sweep.tracked.watch_system():
                whole = _search(sweep, kit, recorder, resumed is not None, caught)
                if not whole:
                    raise KeyboardInterrupt
                _judge_finalists(sweep, recorder.in_order)
                winner = _winner(recorder.in_order)
                if winner is None:
                    message = "no trial has finished, so there is no champion"
                else:
                    with open_training_view(plan.champion(winner.values).training.epochs) as training_view:
                        _train_champion(sweep, winner, training_view, notes, caught)
                    status, code = "finished", 0
        except KeyboardInterrupt:
            ignore_signals()
            status, message, code = "interrupted", f"interrupted by {caught.name}", caught.exit_code
        except (OSError, InputError, CheckpointError, TakenOverError, TooManyFailedError, _ChampionError) as error:
            message = str(error)
        except ray.exceptions.RayError as error:
            message = f"Ray: {str(error).strip().partition(chr(10))[0]}"
        except Exception as error:
            if is_store_error(error):
                message = f"MLflow: {reason(error)}"
            else:
                view.say(traceback.format_exc())  # A fault of ours, which can only be mended where it is.
                message = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        finally:
            ignore_signals()
            outcome = _close(sweep, recorder, status, message, view)
    trials = recorder.in_order
    summary = SweepSummary(
        status=status,
        message=message,
        sweep=sweep.stored.name,
        storage=sweep.stored.place.url,
        mlflow_uri=without_password(sweep.tracked.uri),
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


class _ChampionError(RuntimeError):
    """The champion's own training did not come to a good end."""


def _tags(plan: SweepPlan, sweep: str) -> dict[str, str]:
    return {**provenance_tags(plan.base.workers, "jobs/tune.py"), "distsens.sweep_name": sweep}


def _open(recipe: Mapping[str, Any], checked: CheckedSweep, view: SweepView, resumed: StoredSweep | None) -> _Sweep:
    plan, base = checked.plan, checked.base
    places = places_of_cluster(plan.base.workers)
    fitting = plan.total if places is None else max(1, places // plan.base.workers.num)
    at_a_time = min(fitting, plan.total, plan.sweep.concurrent or plan.total)
    if resumed is not None:
        tracked = TrackedRun.reopen(base.tracking_uri, resumed.mlflow_run_id)
        stored = replace(resumed, recipe=dict(recipe))
    else:
        name = new_name(plan.base)
        tracked = TrackedRun.create(
            base.tracking_uri,
            experiment=plan.base.tracking.experiment,
            name=name,
            params={
                **{f"search.{field}": str(one) for field, one in plan.space.items()},
                **{f"sweep.{field}": value for field, value in plan.sweep.flat().items()},
            },
            tags={**_tags(plan, name), "distsens.run": name},
            artifact_root=base.artifact_root,
        )
        stored = StoredSweep(name, base.storage.child(name), dict(recipe), tracked.run_id)
    stored.save()
    return _Sweep(plan, base, stored, tracked, view, at_a_time)


def _search(sweep: _Sweep, kit: TrialKit, recorder: SweepRecorder, resumed: bool, caught: Caught) -> bool:
    """Let Ray Tune run the trials; whether it came to the end."""
    trainable = tune.with_resources(tune.with_parameters(train_trial, kit=kit), resources(sweep.plan.base.workers))
    folder = f"{_tune_path(sweep)}/{TUNE_FOLDER}"
    if resumed and tune.Tuner.can_restore(folder):
        recorder.settle(
            [one.trial_id for one in tune.ExperimentAnalysis(folder).trials if one.status == one.TERMINATED]
        )
        tuner = tune.Tuner.restore(folder, trainable, resume_unfinished=True)
    else:
        tuner = _tuner(sweep, trainable)
    with recorder, _tune_hears(caught):
        tuner.fit()
    if recorder.error is not None:
        raise recorder.error
    # An interrupted Ray Tune returns as if all were well.
    trials = recorder.in_order
    return len(trials) == sweep.plan.total and all(one.status != "running" for one in trials)


def _tuner(sweep: _Sweep, trainable: Any) -> tune.Tuner:
    plan = sweep.plan
    pbt = plan.sweep.scheduler == "pbt"
    return tune.Tuner(
        trainable,
        param_space=param_space(plan),
        tune_config=tune.TuneConfig(
            search_alg=searcher(plan),
            scheduler=scheduler(plan),
            num_samples=1 if plan.sweep.searcher == "grid" else plan.sweep.trials,
            # A population is made whole, and takes turns.
            max_concurrent_trials=None if pbt else sweep.at_a_time,
        ),
        run_config=tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=_tune_path(sweep),
            failure_config=tune.FailureConfig(max_failures=plan.base.workers.max_failures),
            callbacks=[TellsRecorder(sweep.stored.name)],
            verbose=0,
        ),
    )


def _tune_path(sweep: _Sweep) -> str:
    return sweep.stored.place.url.removeprefix("file://").rstrip("/")


@contextmanager
def _tune_hears(caught: Caught) -> Iterator[None]:
    """Ray Tune ends in good order at SIGINT, by a handler that it leaves behind: SIGTERM is to do the same."""

    def as_interrupt(number: int, frame: Any) -> None:  # noqa: ARG001
        caught.number = number
        os.kill(os.getpid(), signal.SIGINT)

    before = {
        signal.SIGINT: signal.getsignal(signal.SIGINT),
        signal.SIGTERM: signal.signal(signal.SIGTERM, as_interrupt),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _judge_finalists(sweep: _Sweep, trials: Sequence[TrialState]) -> None:
    """AutoAttack on the same first validation images for each of the best; what it leaves decides among them."""
    settings = sweep.plan.sweep
    finalists = at_the_end(trials)[: settings.finalists]
    if settings.judged_images == 0 or len(finalists) < 2:
        return
    for one in finalists:
        if one.autoattack is None:
            sweep.view.say(f"trial {one.number}: judged by AutoAttack on {settings.judged_images} validation images")
            one.autoattack = _autoattack(sweep, one)
            sweep.stored.keep(one)


def _autoattack(sweep: _Sweep, trial: TrialState) -> float:
    """Robust accuracy of a trial's best epoch under AutoAttack."""
    plan, address = sweep.plan, _trained_at(sweep, trial)
    examination = Examination.parse(
        {
            "model": {"address": address},
            "data": {"split": "validation", "limit": plan.sweep.judged_images},
            "attacks": ["autoattack"],
            "shard": _SHARD,
            "seed": plan.base.seed,
            # All that the cluster holds: no trial trains now.
            "workers": plan.base.workers.model_dump(mode="json") | {"num": sweep.at_a_time * plan.base.workers.num},
            "storage": {"path": sweep.checked.storage.url},
            "tracking": {"uri": plan.base.tracking.uri, "experiment": plan.base.tracking.experiment},
        }
    )
    checked = check_examination(examination)
    assignment = Assignment(
        f"{sweep.stored.name}-{trial.number}",
        checked.examination,
        checked.subject,
        None,
        checked.dataset.shape,
        len(checked.dataset.classes),
        *share_split(checked.split),
        *share_split(pool(checked.dataset)),
    )
    numbers = list(checked.numbers)
    shards = {start: numbers[start : start + _SHARD] for start in range(0, len(numbers), _SHARD)}
    with closing(Examiners(assignment)) as examiners:
        done = [found[1] for found in examiners.examine(shards, _SECONDS_BETWEEN_LOOKS) if found is not None]
    return Ledger.join(done).robust.value


def _trained_at(sweep: _Sweep, trial: TrialState) -> str:
    """Address of the trial's last training."""
    place = sweep.stored.place.child(f"trials/{trial.trial}")
    if sweep.plan.sweep.scheduler != "pbt":
        return place.child(f"rung-{trial.rung}").url
    return place.child(sweep.plan.experiment(trial.values).digest()[:12]).url


def _winner(trials: Sequence[TrialState]) -> TrialState | None:
    """The best of the finalists under AutoAttack, else by score."""
    finished = at_the_end(trials)
    judged = [one for one in finished if one.autoattack is not None]
    return max(judged, key=lambda one: one.autoattack or 0.0) if judged else next(iter(finished), None)


def _train_champion(sweep: _Sweep, winner: TrialState, view: View, notes: str, caught: Caught) -> None:
    """Train the winner anew, test it once, register it."""
    plan, stored = sweep.plan, sweep.stored
    experiment = plan.champion(winner.values)
    checked = check(experiment)
    name = f"{stored.name}-champion-{int(time.time()):x}"
    sweep.view.say(f"trial {winner.number} is trained anew")
    tags = {
        "mlflow.parentRunId": sweep.tracked.run_id,
        "mlflow.source.name": "jobs/tune.py",
        "distsens.sweep_name": stored.name,
        "distsens.trial": winner.trial,
    }
    summary, _ = train_on_cluster(experiment, checked, view, notes, caught, name=name, tags=tags)
    if summary.status == "interrupted":
        raise KeyboardInterrupt
    if summary.status != "finished":
        raise _ChampionError(f"the champion's training failed: {summary.message}")
    registered, version = None, None
    if summary.mlflow_model is not None:
        model = plan.sweep.registered_name or plan.base.name
        lineage = {
            "sweep": stored.name,
            "sweep_run_id": sweep.tracked.run_id,
            "trial": winner.trial,
            "trial_run_id": winner.mlflow_run_id or "",
            "run": summary.run,
            "experiment_sha256": experiment.digest(),
            "dataset_sha256": checked.dataset.train.digest(),
        }
        version = sweep.tracked.register(summary.mlflow_model, model, _ALIAS, lineage, run_id=summary.mlflow_run_id)
        registered = f"models:/{model}@{_ALIAS}"
    sweep.champion = {
        "trial": winner.trial,
        "number": winner.number,
        "values": winner.values,
        "run": summary.run,
        "published": summary.published,
        "mlflow_run_id": summary.mlflow_run_id,
        "registered": registered,
        "version": version,
        "test": summary.test,
        "validation": summary.validation,
    }


def _close(
    sweep: _Sweep,
    recorder: SweepRecorder,
    status: str,
    message: str | None,
    view: SweepView,
) -> Outcome:
    """End the trials' and the sweep's MLflow runs, with the report of what was found."""
    ends: dict[str, Literal["FINISHED", "FAILED", "KILLED"]] = {"finished": "FINISHED", "interrupted": "KILLED"}
    try:
        recorder.interrupt()
        outcome = count(recorder.in_order, sweep.plan.space)
        if outcome.best:
            _report(sweep, recorder.in_order, outcome)
        sweep.tracked.finish(ends.get(status, "FAILED"), message)
    except Exception as error:
        if not is_store_error(error):
            raise
        view.say(f"the MLflow run cannot be ended now ({reason(error)}); its guardian goes on trying for some minutes")
    return count(recorder.in_order, sweep.plan.space)


def _report(sweep: _Sweep, trials: Sequence[TrialState], outcome: Outcome) -> None:
    """Figures, tables and the page, to MLflow and to the sweep's folder; the counts as metrics."""
    plan, champion = sweep.plan, sweep.champion
    plates = sweep_plates(trials, outcome, plan.space, plan.rungs, None if champion is None else champion["trial"])
    settings = {
        **{f"search.{field}": str(one) for field, one in plan.space.items()},
        **{f"sweep.{field}": value for field, value in plan.sweep.flat().items()},
        **{
            field: value for field, value in plan.base.flat().items() if not field.startswith(("storage.", "tracking."))
        },
    }
    about = f"{plan.base.name}: {', '.join(plan.space)}; {len(trials)} trials by {plan.sweep.searcher}" + (
        f" and {plan.sweep.scheduler}" if plan.sweep.scheduler != "none" else ""
    )
    page = sweep_page(sweep.stored.name, about, trials, outcome, plates, champion, settings)
    files = {"report.html": page.encode(), "trials.parquet": _table(trials, outcome), "front.csv": _front(outcome)}
    for plate in plates:
        files |= {f"figures/{plate.name}.png": plate.png, f"figures/{plate.name}.svg": plate.svg}
    for path, data in files.items():
        sweep.stored.place.put(f"report/{path}", data)
        sweep.tracked.log_bytes(path, data)
    numbers = {"hypervolume": outcome.hypervolume, "trials": float(len(trials)), "evaluations": outcome.evaluations}
    numbers |= {} if outcome.saved is None else {"evaluations_saved": outcome.saved}
    numbers |= {f"importance/{field}": share for field, share in outcome.importance.items()}
    if outcome.best and (point := outcome.best[0].point) is not None:
        numbers |= {"best/clean_accuracy": point.clean, "best/robust_accuracy": point.robust}
    if champion is not None:
        numbers |= {f"champion/test/{name}": value for name, value in champion["test"].items()}
    sweep.tracked.log_result(numbers)
    sweep.tracked.log_text("findings.txt", "\n".join(sweep_sentences(trials, outcome, champion)) + "\n")


def _rows(trials: Sequence[TrialState]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "trial": one.trial,
                "number": one.number,
                **{field: list(v) if isinstance(v, tuple) else v for field, v in one.values.items()},
                "rung": one.rungs_done,
                "clean_accuracy": None if one.point is None else one.point.clean,
                "robust_accuracy": None if one.point is None else one.point.robust,
                "autoattack": one.autoattack,
                "seconds": one.seconds,
                "evaluations": one.evaluations,
                "status": one.status,
                "failure": one.failure,
                "mlflow_run_id": one.mlflow_run_id,
            }
            for one in trials
        ]
    )


def _table(trials: Sequence[TrialState], outcome: Outcome) -> bytes:
    """All trials as a Parquet file, with whether each is on the front."""
    rows = _rows(trials)
    rows["front"] = rows["trial"].isin([one.trial for one in outcome.front])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trials.parquet"
        rows.to_parquet(path, index=False)
        return path.read_bytes()


def _front(outcome: Outcome) -> bytes:
    """The front as CSV, by rising clean accuracy."""
    return _rows(outcome.front).to_csv(index=False).encode() if outcome.front else b"trial\n"
