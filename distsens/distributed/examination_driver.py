"""The driver of an evaluation: starts the examiners, keeps every shard's ledger, and records the whole once."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from distsens.distributed.cluster import check_capacity_of_cluster, connected
from distsens.distributed.endings import (
    MLFLOW_STATUS,
    EndedError,
    Status,
    cause,
    ended_whatever_happens,
    explain,
    finish,
    in_one_line,
)
from distsens.distributed.evaluations import Shards, StoredEvaluation
from distsens.distributed.examination_preflight import CheckedExamination, pool
from distsens.distributed.examiners import Assignment, Examiners, share_split
from distsens.distributed.places import pinned
from distsens.distributed.provenance import package_versions, provenance_tags
from distsens.distributed.shards import largest_shard, share_out
from distsens.distributed.signals import ignore_signals, signals_interrupt
from distsens.errors import InputError
from distsens.evaluation import (
    Check,
    Differences,
    Ledger,
    Subject,
    Verification,
    absolute_address,
    differences,
    fingerprint,
    make_claim,
    selected_epoch,
    verify,
)
from distsens.examination import Examination, JudgedData, JudgedModel
from distsens.experiment import Experiment, merge
from distsens.logits import too_many_not_finite
from distsens.models import words_for
from distsens.redaction import without_secrets
from distsens.report import EvaluationSummary, EvaluationView, evaluation_figure, in_style
from distsens.storage import Place, address, open_place, write_json
from distsens.tracking import TrackedRun

PAIRS_FILE = "pairs.json"
_SECONDS_BETWEEN_LOOKS = 0.5
_LONGEST_NAME = 100
_PAIRS = re.compile(r"/pairs-(\d+)\.npz$")


def check_same(stored: StoredEvaluation, checked: CheckedExamination) -> None:
    """Refuse to go on with another model, other images, or another examination."""
    for what, before, now in (
        ("model", stored.model_sha256, checked.subject.sha256),
        ("model that transfer names", stored.source_sha256, _source_sha256(checked)),
        ("images", stored.data_digest, checked.data_digest),
        ("examination", stored.examination.digest(), checked.examination.digest()),
    ):
        if before != now:
            raise InputError("resume", stored.name, f"the {what} is another than when it began")
    wanted = checked.examination.examples
    if wanted != stored.examination.examples and stored.place.keys("ledger"):
        raise InputError("examples", wanted, "the same as when it began: shards that are done are not attacked again")


def run_examination(
    checked: CheckedExamination, view: EvaluationView, resumed: StoredEvaluation | None
) -> tuple[EvaluationSummary, Ledger | None, int]:
    """Judge to the end, or to a failure or interruption: the summary, the ledger if it is whole, and the exit code."""
    began = time.monotonic()
    status: Status = "failed"
    message, code = None, 1
    shards = Shards({}, {}) if resumed is None else resumed.shards(checked.labels)
    done, checks = shards.done, None if resumed is None else resumed.checks()
    with ExitStack() as stack:
        stack.enter_context(in_one_line(view.say))
        caught = stack.enter_context(signals_interrupt())
        stack.enter_context(connected(view.say))
        check_capacity_of_cluster(checked.examination.workers)
        tags = provenance_tags(checked.examination.workers, "jobs/evaluate.py")
        stored, tracked = _open(checked, resumed, tags, view.say)
        stack.enter_context(ended_whatever_happens(tracked, view.say))
        before = sum(len(part) for part in done.values())
        view.say(f"evaluation {stored.name}")
        view.say(f"storage {stored.place.url}")
        view.say(f"tracking {without_secrets(tracked.uri)} run {tracked.run_id}")

        def summarize(status: Status, message: str | None) -> EvaluationSummary:
            return EvaluationSummary.of(
                status=status,
                message=message,
                run=stored.name,
                storage=stored.place.url,
                mlflow_uri=without_secrets(tracked.uri),
                mlflow_run_id=tracked.run_id,
                examination=checked.examination.model_dump(mode="json"),
                model=model_of(checked),
                data=_data(checked),
                classes=checked.dataset.classes,
                images=len(checked.rows),
                ledger=Ledger.join([done[number] for number in sorted(done)]) if done else None,
                checks=checks or [],
                warnings=checked.warnings,
                baseline=checked.baseline,
                commit=tags["distsens.commit"],
                seconds=stored.seconds + time.monotonic() - began,
                seconds_now=time.monotonic() - began,
                judged_now=sum(len(part) for part in done.values()) - before,
            )

        try:
            for line in stored.set_aside(shards):
                view.say(line)
            checks = _judge(checked, stored, done, checks, view, began - stored.seconds)
            ledger = Ledger.join([done[number] for number in sorted(done)])
            stored.keep_whole(ledger)
            _record(summarize("finished", None), ledger, tracked)
            status, code = "finished", 0
        except KeyboardInterrupt:
            ignore_signals()
            status, message, code = "interrupted", f"interrupted by {caught.name}", caught.exit_code
        except Exception as error:
            message = explain(error, view.say)
        finally:
            ignore_signals()
            finish(tracked, MLFLOW_STATUS[status], message, view.say)
    return summarize(status, message), ledger if status == "finished" else None, code


def command_to_resume(
    places: Sequence[str], resumed: Sequence[StoredEvaluation | None], checked: Sequence[CheckedExamination]
) -> list[str]:
    """The command that goes on with the evaluation at the last of the places, and then with all that are left."""
    begun = [*places, *(before.place.url for before in resumed[len(places) :] if before is not None)]
    words = ["python", "jobs/evaluate.py", "--resume", *map(address, begun)]
    words += words_for([one.examination.model_dump(mode="json") for one in checked[: len(begun)]])
    further = [one.examination.model for one in checked[len(begun) :]]
    if further:
        words += ["--model", *(model.address for model in further)]
        words += next((said for model in further if (said := _said(model))), [])
    return words


def _said(model: JudgedModel) -> list[str]:
    """Flags for what was said of a file of weights, which is the same for all of them."""
    words = []
    for name, value in model.model_dump(exclude={"address"}).items():
        if value is True:
            words.append(f"--model.{name}")
        elif value not in (None, False):
            words += [f"--model.{name}", *(map(repr, value) if isinstance(value, tuple) else [value])]
    return words


@dataclass(frozen=True)
class Identity:
    """Which model is judged, and on which one transferred examples are made, as claims describe them."""

    model: dict[str, Any]
    source: dict[str, Any] | None


def identity_of(checked: CheckedExamination) -> Identity:
    """Take both models' fingerprints.

    Raises
    ------
    InputError : a model cannot take the fixed images.
    """
    source = checked.source
    return Identity(
        {**model_of(checked), "computes": _computes(checked, checked.subject)},
        None
        if source is None
        else {
            "sha256": source.sha256,
            "architecture": _architecture(source),
            "computes": _computes(checked, source),
        },
    )


def _computes(checked: CheckedExamination, subject: Subject) -> dict[str, Any]:
    """As JSON has it, to be compared with what is read from there."""
    shape = checked.dataset.shape
    try:
        found = fingerprint(subject.build(shape, len(checked.dataset.classes)), shape)
    except Exception as error:  # whatever other people's code raises
        raise InputError("model", subject.address, f"of fixed images it makes no logits: {cause(error)}") from None
    return {"weights_sha256": found.weights_sha256, "logits": [list(row) for row in found.logits]}


def claim_of(
    checked: CheckedExamination, identity: Identity, ledger: Ledger, summary: EvaluationSummary
) -> dict[str, Any]:
    """What can be claimed of the model by this ledger."""
    return make_claim(
        ledger,
        examination=checked.examination.model_dump(mode="json"),
        model=identity.model,
        data=_data(checked),
        source=identity.source,
        settings=checked.attacks,
        versions=package_versions(),
        commit=summary.commit,
        seconds=summary.seconds,
    )


def differences_from(claim: dict[str, Any], checked: CheckedExamination, identity: Identity) -> Differences:
    """What would be judged that is not what is claimed."""
    return differences(
        claim,
        model=identity.model,
        data_digest=checked.data_digest,
        source=identity.source,
        settings=checked.attacks,
    )


def verify_with(claim: dict[str, Any], checked: CheckedExamination, identity: Identity, ledger: Ledger) -> Verification:
    """What this examination's ledger says of a claim."""
    return verify(
        claim,
        ledger,
        numbers=checked.numbers.tolist(),
        model=identity.model,
        data_digest=checked.data_digest,
        source=identity.source,
        settings=checked.attacks,
    )


def _open(
    checked: CheckedExamination, resumed: StoredEvaluation | None, tags: dict[str, str], say: Callable[[str], None]
) -> tuple[StoredEvaluation, TrackedRun]:
    examination, subject = checked.examination, checked.subject
    if resumed is not None:
        tracked = TrackedRun.reopen(checked.tracking_uri, resumed.mlflow_run_id, artifact_root=checked.artifact_root)
        with ended_whatever_happens(tracked, say):
            resumed.save()  # It may have been moved.
        return resumed, tracked
    places = pinned(examination.tracking.uri, checked.storage, checked.tracking_uri)
    name = name_after("evaluate", subject.name)
    place = checked.storage.child(name)
    if subject.mlflow_run_id is not None:
        tags |= {"mlflow.parentRunId": subject.mlflow_run_id, "distsens.trained_by": subject.mlflow_run_id}
    tracked = TrackedRun.create(
        checked.tracking_uri,
        experiment=examination.tracking.experiment,
        name=name,
        params=examination.flat() | {"model.sha256": subject.sha256, "data.digest": checked.data_digest},
        tags={**tags, "distsens.evaluation": name, "distsens.model_address": subject.address},
        artifact_root=checked.artifact_root,
    )
    stored = StoredEvaluation(
        name,
        place,
        Examination.parse(merge(examination.model_dump(mode="json"), places)),
        tracked.run_id,
        subject.sha256,
        _source_sha256(checked),
        checked.data_digest,
    )
    with ended_whatever_happens(tracked, say):
        stored.save()
    return stored, tracked


def name_after(job: str, model: str) -> str:
    """A new name for what a job finds of a model; of the model's only what a key in storage may hold, not too long."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", model)[:_LONGEST_NAME]
    return f"{job}-{words}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _judge(
    checked: CheckedExamination,
    stored: StoredEvaluation,
    done: dict[int, Ledger],
    checks: list[Check] | None,
    view: EvaluationView,
    began: float,
) -> list[Check] | None:
    """Have every shard judged that is not done yet; the diagnostics' checks, which may be known, if they are wanted.

    ``began`` is when it would have begun if its sessions followed one another without a pause.
    """
    examination, dataset = checked.examination, checked.dataset
    shards = shards_left(checked, done)
    if examination.examples is not None:
        pairs = open_place(examination.examples)
        write_json(pairs, f"{stored.name}/{PAIRS_FILE}", _of_pairs(checked, stored))
        forget_pairs(pairs, stored.name, done)
    view.begin(len(checked.rows), sum(len(ledger) for ledger in done.values()))
    _check_finite(done, len(checked.rows))
    diagnose = examination.diagnostics and checks is None
    if not shards and not diagnose:
        return checks
    examiners = Examiners(
        Assignment(
            stored.name,
            examination,
            checked.subject,
            checked.source,
            dataset.shape,
            len(dataset.classes),
            checked.numbers,
            *share_split(checked.split),
            *share_split(pool(dataset, examination.data.split)),
        ),
        view.say,
    )
    for found in examiners.examine(shards, _SECONDS_BETWEEN_LOOKS, diagnose=diagnose):
        if isinstance(found, list):
            checks = found
            stored.keep_checks(checks)
        elif found is not None:
            number, ledger = found
            stored.keep(number, ledger, time.monotonic() - began)
            done[number] = ledger
        view.judged(Ledger.join(list(done.values())) if done else None)
        _check_finite(done, len(checked.rows))
    return checks


def _check_finite(done: dict[int, Ledger], images: int) -> None:
    """End an evaluation of which it is certain that too many of all its images have logits that are not finite."""
    if (line := too_many_not_finite(sum(ledger.not_finite for ledger in done.values()), images)) is not None:
        raise EndedError(line)


def shards_left(checked: CheckedExamination, done: Mapping[int, Ledger]) -> dict[int, list[int]]:
    """By number the rows of images that no ledger has yet, which may be of shards of another size."""
    examination = checked.examination
    judged = {int(image) for ledger in done.values() for image in ledger.rows["image"]}
    left = [row for row in checked.rows if int(checked.numbers[row]) not in judged]
    largest = largest_shard(examination.workers, examination.batch_size)
    first = max(done, default=-1) + 1
    return dict(enumerate(share_out(left, examination.workers.num, largest, examination.shard), first))


def forget_pairs(pairs: Place, name: str, done: Mapping[int, Ledger]) -> None:
    """Delete pairs whose shard was not finished: its images are judged anew, perhaps in another one."""
    for key in pairs.keys(name):
        if (number := _PAIRS.search(key)) is not None and int(number[1]) not in done:
            pairs.delete(key)


def _of_pairs(checked: CheckedExamination, stored: StoredEvaluation) -> dict[str, Any]:
    """What the stored pairs are of: the model that the examples fool, and the ball that they lie in."""
    examination = checked.examination
    return {
        # Files of an earlier version do not say of which evaluation they are.
        "evaluation": None if stored.format == 1 else stored.name,
        "model": model_of(checked),
        "source_sha256": _source_sha256(checked),
        "data": {**_data(checked), **_where(examination.data)},
        "threat": examination.threat.model_dump(mode="json"),
        "attacks": list(examination.attacks),
        "seed": examination.seed,
    }


def _where(data: JudgedData) -> dict[str, Any]:
    """Where the images were found and how they were read, as far as that was said."""
    said = data.model_dump(include={"root", "image_size", "classes"}, exclude_none=True)
    return {**said, "root": absolute_address(said["root"])} if "root" in said else said


def _record(summary: EvaluationSummary, ledger: Ledger, tracked: TrackedRun) -> None:
    tracked.log_result(summary.metrics())
    tracked.log_bytes("ledger.parquet", ledger.to_parquet())
    tracked.log_json("evaluation.json", summary.to_dict())
    with in_style():
        for kind in ("png", "svg"):
            tracked.log_figure(f"evaluation.{kind}", evaluation_figure(summary))


def model_of(checked: CheckedExamination) -> dict[str, Any]:
    """What is known of the judged model."""
    subject, training = checked.subject, checked.subject.experiment
    return {
        "name": subject.name,
        "address": subject.address,
        "run": subject.run,
        "sha256": subject.sha256,
        "architecture": _architecture(subject),
        "additional_data": None if training is None else training.data.extra is not None,
        "training": None if training is None else _training(training, subject),
    }


def _training(training: Experiment, subject: Subject) -> dict[str, Any]:
    """What it shares with trainings of the same recipe with other seeds, and its own seed."""
    return {
        "recipe": training.model_copy(update={"seed": 0}).digest(),
        "seed": training.seed,
        "selected": selected_epoch(subject.address),
    }


def _architecture(subject: Subject) -> dict[str, Any]:
    """As JSON has it, to be compared with what is read from there."""
    own = subject.architecture
    return {**asdict(own), "mean": list(own.mean), "std": list(own.std)}


def _data(checked: CheckedExamination) -> dict[str, Any]:
    return {
        "name": checked.dataset.name,
        "split": checked.examination.data.split,
        "images": len(checked.rows),
        "choice": checked.examination.data.choice,
        "digest": checked.data_digest,
    }


def _source_sha256(checked: CheckedExamination) -> str | None:
    return None if checked.source is None else checked.source.sha256
