"""After the search: the best trials are judged by AutoAttack, and the winner is trained anew and registered."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from distsens.distributed.driver import train_on_cluster
from distsens.distributed.endings import EndedError
from distsens.distributed.evaluations import StoredEvaluation
from distsens.distributed.examination_driver import shards_left
from distsens.distributed.examination_preflight import CheckedExamination, check_examination, pool
from distsens.distributed.examiners import Assignment, Examiners, share_split
from distsens.distributed.preflight import Checked, check
from distsens.distributed.runs import find_run
from distsens.distributed.signals import Caught
from distsens.distributed.sweep_record import StoredSweep
from distsens.distributed.trial import last_training
from distsens.evaluation import Ledger
from distsens.examination import Examination
from distsens.report import View
from distsens.report.sweep import SweepView, TrialState, at_the_end
from distsens.search import Point, Sweep, SweepPlan, score
from distsens.storage import RUN_FILE
from distsens.tracking import TrackedRun

_ALIAS = "champion"
_SECONDS_BETWEEN_LOOKS = 0.5


class ChampionError(EndedError):
    """The champion's own training did not come to a good end."""


@dataclass
class Searched:
    """A sweep, while it goes on and when its trials have ended.

    at_a_time : trials that the cluster holds.
    champion : what the summary says of it, once there is one.
    """

    plan: SweepPlan
    checked: Checked
    stored: StoredSweep
    tracked: TrackedRun
    view: SweepView
    at_a_time: int
    champion: dict[str, Any] | None = None


def judge_finalists(sweep: Searched, trials: Sequence[TrialState]) -> None:
    """AutoAttack on the same validation images, stratified, for each of the best; what it leaves decides among them."""
    settings = sweep.plan.sweep
    finalists = at_the_end(trials)[: settings.finalists]
    images = min(settings.judged_images, len(sweep.checked.dataset.validation))
    wanted = finalists if images and len(finalists) > 1 else []
    for one in trials:
        # What an earlier session found may be of other images: it is counted anew, from the shards that it has left.
        found = _judged(sweep, one, check_examination(_examination(sweep, one, images))) if one in wanted else None
        if one.autoattack != found:
            one.autoattack = found
            sweep.stored.keep(one)


def _examination(sweep: Searched, trial: TrialState, images: int) -> Examination:
    """AutoAttack on so many validation images, of what a trial was scored by."""
    plan = sweep.plan
    return Examination.parse(
        {
            # The factory again, which a file in storage is not believed alone.
            "model": {"address": _trained_at(sweep, trial), "factory": plan.experiment(trial.values).model.name},
            "data": {"split": "validation", "limit": images},
            "attacks": ["autoattack"],
            "seed": plan.base.seed,
            # All that the cluster holds: no trial trains now.
            "workers": plan.base.workers.model_dump(mode="json") | {"num": sweep.at_a_time * plan.base.workers.num},
            "storage": {"path": sweep.checked.storage.url},
            "tracking": {"uri": plan.base.tracking.uri, "experiment": plan.base.tracking.experiment},
        }
    )


def _judged(sweep: Searched, trial: TrialState, checked: CheckedExamination) -> float:
    """Robust accuracy, from the shards that an earlier session has left in the sweep's storage and from those left."""
    view, what = sweep.view, f"trial {trial.number}: AutoAttack on {len(checked.rows)} validation images"
    stored = _stored(sweep, trial, checked)
    found_before = stored.shards(checked.labels)
    for line in stored.set_aside(found_before):
        view.say(line)
    done = found_before.done
    shards = shards_left(checked, done)
    before, began = sum(map(len, done.values())), time.monotonic()
    view.say(what + (f", {before} of which are judged" if before else ""))
    if shards:
        assignment = Assignment(
            stored.name,
            checked.examination,
            checked.subject,
            None,
            checked.dataset.shape,
            len(checked.dataset.classes),
            checked.numbers,
            *share_split(checked.split),
            *share_split(pool(checked.dataset, checked.examination.data.split)),
        )
        with closing(Examiners(assignment, view.say)) as examiners:
            for found in examiners.examine(shards, _SECONDS_BETWEEN_LOOKS):
                if isinstance(found, tuple):
                    number, done[number] = found
                    stored.keep(number, done[number], stored.seconds + time.monotonic() - began)
                view.doing(f"{what}: {_so_far(done, len(checked.rows))}")
    robust = Ledger.join(list(done.values())).robust
    view.say(f"{what} leaves {robust.count}, {robust.value:.1%}")
    return robust.value


def _so_far(done: Mapping[int, Ledger], images: int) -> str:
    if not done:
        return f"0 of {images} judged"
    ledger = Ledger.join(list(done.values()))
    return f"{len(ledger)} of {images} judged, {ledger.robust.count} robust"


def _stored(sweep: Searched, trial: TrialState, checked: CheckedExamination) -> StoredEvaluation:
    """Where the shards of this judgement are kept; in a folder of their own for each model, images and settings."""
    model = checked.examination.model.model_copy(update={"address": "", "factory": None})  # it may be moved
    decides = [
        checked.subject.sha256,
        checked.data_digest,
        checked.examination.model_copy(update={"model": model}).digest(),
    ]
    key = hashlib.sha256("".join(decides).encode()).hexdigest()[:12]
    return StoredEvaluation(
        f"{sweep.stored.name}-{trial.number}",
        sweep.stored.place.child(f"finalists/{trial.trial}/{key}"),
        checked.examination,
        sweep.stored.mlflow_run_id,
        checked.subject.sha256,
        None,
        checked.data_digest,
    )


def _trained_at(sweep: Searched, trial: TrialState) -> str:
    """Address of the epoch that the trial was scored by: its best, and of a population its newest."""
    place = sweep.stored.place.child(f"trials/{trial.trial}")
    url = last_training(place, sweep.plan, trial.values, trial.rung).url
    return f"{url}#last" if sweep.plan.sweep.scheduler == "pbt" else url


def winner_of(sweep: Sweep, trials: Sequence[TrialState]) -> TrialState | None:
    """The best by the sweep's goal: of the finalists with their accuracy under AutoAttack, else by score."""
    finished = at_the_end(trials)
    judged = [
        (score(sweep, Point(one.point.clean, one.autoattack), last_rung=True), one)
        for one in finished
        if one.autoattack is not None and one.point is not None
    ]
    return max(judged, key=lambda pair: pair[0])[1] if judged else next(iter(finished), None)


def train_champion(sweep: Searched, winner: TrialState, view: View, notes: str, caught: Caught) -> dict[str, Any]:
    """Train the winner anew and test it once; what the summary says of it.

    An earlier session's training is taken up, and one that is done stays as it is.
    """
    plan, stored = sweep.plan, sweep.stored
    run, result = stored.champion(winner.trial) or (f"{stored.name}-champion-{winner.number}", None)
    if result is not None:
        return result
    stored.keep_champion(winner.trial, run, None)
    experiment = plan.champion(winner.values)
    checked = check(experiment)
    begun = find_run(run, checked.storage.url) if checked.storage.keys(f"{run}/{RUN_FILE}") else None
    sweep.view.say(f"trial {winner.number} is trained anew")
    sweep.view.doing("")  # the training has a view of its own
    tags = {
        "mlflow.parentRunId": sweep.tracked.run_id,
        "mlflow.source.name": "jobs/tune.py",
        "distsens.sweep_name": stored.name,
        "distsens.trial": winner.trial,
    }
    summary, _ = train_on_cluster(experiment, checked, view, notes, caught, begun, name=run, tags=tags)
    if summary.status == "interrupted":
        raise KeyboardInterrupt
    if summary.status != "finished":
        raise ChampionError(f"the champion's training failed: {summary.message}")
    result = {
        "trial": winner.trial,
        "number": winner.number,
        "values": winner.values,
        "run": summary.run,
        "published": summary.published,
        "mlflow_run_id": summary.mlflow_run_id,
        "mlflow_model": summary.mlflow_model,
        "registered": None,
        "version": None,
        "test": summary.test,
        "validation": summary.validation,
    }
    stored.keep_champion(winner.trial, run, result)
    return result


def register_champion(sweep: Searched, winner: TrialState, champion: dict[str, Any]) -> dict[str, Any]:
    """Register the trained winner, unless it is or MLflow holds no model of it; what the summary says of it then."""
    plan, stored = sweep.plan, sweep.stored
    if champion["registered"] is not None or champion.get("mlflow_model") is None:
        return champion
    model = plan.sweep.registered_name or plan.base.name
    lineage = {
        "sweep": stored.name,
        "sweep_run_id": sweep.tracked.run_id,
        "trial": winner.trial,
        "trial_run_id": winner.mlflow_run_id or "",
        "run": champion["run"],
        "experiment_sha256": plan.champion(winner.values).digest(),
        "dataset_sha256": sweep.checked.dataset.train.digest(),
    }
    version = sweep.tracked.register(champion["mlflow_model"], model, _ALIAS, lineage, run_id=champion["mlflow_run_id"])
    registered = champion | {"registered": f"models:/{model}@{_ALIAS}", "version": version}
    stored.keep_champion(winner.trial, champion["run"], registered)
    return registered
