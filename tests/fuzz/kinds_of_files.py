"""Files as a small training, a sweep and an evaluation leave them, how each is read, and how each is forged."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml

from distsens.analysis import find_pairs, read_pairs
from distsens.analysis.history import training_history, turnover_table
from distsens.attacks import Threat, attack_named
from distsens.data import ImageSet, Source, load
from distsens.data.npz import read_extra
from distsens.data.survey import Survey, known_survey, remember_survey
from distsens.distributed import examination_preflight
from distsens.distributed.evaluations import StoredEvaluation, find_evaluation
from distsens.distributed.runs import check_checkpoints, find_run
from distsens.distributed.sweep_record import StoredSweep, find_sweep
from distsens.distributed.verification import fields_to_verify, read_claim
from distsens.errors import InputError
from distsens.evaluation import (
    Architecture,
    Check,
    Judgement,
    LastIterate,
    Subject,
    differences,
    examine,
    find_subject,
    make_claim,
    verify,
)
from distsens.examination import Examination
from distsens.experiment import Experiment
from distsens.models import build, state_of
from distsens.report import sensitivity_parquet
from distsens.report.sweep import RungState, TrialState
from distsens.sensitivity import LayerSensitivity
from distsens.storage import (
    CheckpointError,
    Checkpoints,
    RunRecord,
    open_place,
    published,
    seal,
    unseal,
    with_digest,
    write_run,
)
from distsens.storage.manifest import FileRecord
from distsens.training import STATE, WEIGHTS, EpochRecord, TrainingState, weights_to_bytes
from tests.fuzz.spoiled_files import (
    spoiled_bytes,
    spoiled_document,
    spoiled_json,
    spoiled_npz,
    spoiled_rows,
    spoiled_state,
)

LABELS = np.arange(12) % 3
RUN, EVALUATION = "mine-1", "evaluate-mine-1"
EXPERIMENT = Experiment.parse({"model": {"name": "lenet5"}, "data": {"name": "digits"}, "threat": {"eps": 0.1}})
EXAMINATION = Examination.parse(
    {
        "attacks": ["pgd"],
        "threat": {"norm": "linf", "eps": 0.1},
        "data": {"name": "digits", "limit": 12},
        "pgd": {"steps": 1, "restarts": 1},
    }
)
FINGERPRINT = {"weights_sha256": "c" * 64, "logits": [[0.5, -1.0], [0.25, None]]}
MODEL = {"name": "net", "sha256": "a" * 64, "architecture": {"name": "lenet5", "mean": [0.0], "std": [1.0]}}
SETTINGS: dict[str, dict[str, Any]] = {"pgd": {"steps": 1}}


@dataclass(frozen=True)
class Kind:
    """A kind of files.

    path : of the file. read : what is in it, to be compared. whole : any other content is noticed, unless it is forged.
    forge : a spoiled content that its digests do not give away, by the content as it was.
    absent : the file is a cache, and what cannot be read is not there.
    """

    name: str
    path: Path
    read: Callable[[], Any]
    forge: Callable[[random.Random, bytes], bytes]
    whole: bool = False
    absent: bool = False


def of_json(draw: random.Random, content: bytes) -> bytes:
    return spoiled_json(draw, json.loads(content))


def of_digested_json(draw: random.Random, content: bytes) -> bytes:
    document = spoiled_document(draw, {key: value for key, value in json.loads(content).items() if key != "sha256"})
    return json.dumps(with_digest(document) if isinstance(document, dict) else document).encode()


def of_yaml(draw: random.Random, content: bytes) -> bytes:
    return json.dumps(spoiled_document(draw, yaml.safe_load(content)), indent=1).encode()


def of_npz(draw: random.Random, content: bytes) -> bytes:
    with np.load(io.BytesIO(content)) as arrays:
        return spoiled_npz(draw, dict(arrays))


def of_table(draw: random.Random, content: bytes) -> bytes:
    found = unseal(content, nullable=True)
    rows, about = found.rows, dict(found.about or {})
    if draw.random() < 0.3:
        about = spoiled_document(draw, about)
    else:
        rows = spoiled_rows(draw, rows)
    if draw.random() < 0.3:
        buffer = io.BytesIO()
        rows.to_parquet(buffer, index=False)
        return buffer.getvalue()
    return seal(rows, about)


def of_pickle(draw: random.Random, content: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save(spoiled_state(draw, torch.load(io.BytesIO(content), weights_only=True)), buffer)
    return buffer.getvalue()


def of_tensors(draw: random.Random, content: bytes) -> bytes:
    found = spoiled_state(draw, safetensors.torch.load(content))
    if not isinstance(found, dict):
        return content
    tensors = {str(name): one for name, one in found.items() if isinstance(one, torch.Tensor)}
    return safetensors.torch.save({name: one.to_dense().contiguous() for name, one in tensors.items()})


def forged_checkpoint(manifest: Path, file: str, inner: Callable[[random.Random, bytes], bytes]) -> Any:
    """A file of a checkpoint, and its manifest with the digests that belong to it."""

    def forge(draw: random.Random, content: bytes) -> bytes:
        spoiled = inner(draw, content) if draw.random() < 0.8 else spoiled_bytes(draw, content, [content])
        document = {key: value for key, value in json.loads(manifest.read_bytes()).items() if key != "sha256"}
        record = FileRecord.of(spoiled)
        document["files"][file] = {"size": record.size, "sha256": record.sha256}
        manifest.write_text(json.dumps(with_digest(document)))
        return spoiled

    return forge


def kinds_in(folder: Path) -> list[Kind]:
    """All kinds, in a new folder; the cache is in ``$XDG_CACHE_HOME``, which must be its folder ``cache``."""
    return [*of_a_training(folder), *of_a_sweep(folder), *of_an_evaluation(folder), *of_data(folder)]


def of_a_training(folder: Path) -> list[Kind]:
    storage = open_place(str(folder / "runs"))
    run = storage.child(RUN)
    write_run(run, RunRecord({**EXPERIMENT.model_dump(mode="json"), "storage": {"path": storage.url}}, "id-in-mlflow"))
    model = build("lenet5", shape=(1, 8, 8), classes=10, mean=(0.0,), std=(1.0,), seed=0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()
    layer = LayerSensitivity(*(torch.arange(4.0, dtype=torch.float64) for _ in range(3)))
    metrics = {"validation/robust_accuracy": 0.5, "validation/clean_accuracy": 0.75, "loss": float("nan")}
    history = [EpochRecord(epoch, metrics, {"network.fc": layer}) for epoch in range(3)]
    state = TrainingState(model, optimizer, history=history, initial={"network.fc": layer})
    state.selected = {"network.fc": torch.tensor([3])}
    files = state.to_files()
    for epoch in (1, 2):
        Checkpoints(run).save(epoch, files, experiment=EXPERIMENT.digest(), metrics=metrics)
        table = sensitivity_parquet(epoch, {"network.fc": layer}, 0.25, EXPERIMENT.digest())
        run.put(f"sensitivity/epoch-{epoch:04d}.parquet", table)
    parts = {WEIGHTS: weights_to_bytes(model), "experiment.yaml": EXPERIMENT.to_yaml().encode()}
    published.publish(storage, RUN, parts, epoch=1, experiment=EXPERIMENT.digest(), metrics={})

    def resumed() -> Any:
        found = find_run(f"{folder}/runs/{RUN}", "")
        check_checkpoints(found)
        return found.experiment, found.mlflow_run_id

    def subject(address: str) -> Any:
        found = find_subject(address)
        return found.weights, found.experiment, found.epoch, found.architecture

    def continued() -> Any:
        try:
            found = Checkpoints(run).load(2)
        except CheckpointError as error:
            raise InputError("resume", RUN, str(error)) from None
        again = TrainingState(model, optimizer)
        again.load_files(found.files)
        state = again.to_files()
        torch.save({}, io.BytesIO())
        return again.history, again.selected, safetensors.torch.load(state[WEIGHTS])

    def neurons() -> Any:
        known = Subject("net", f"{folder}/runs/{RUN}", Architecture("lenet5"), b"", EXPERIMENT, run=RUN)
        found = training_history(known)
        assert found is not None
        return found.neurons, turnover_table(found.neurons)

    home, model_home = folder / "runs" / RUN, folder / "runs" / "models" / RUN
    last = home / "checkpoints" / "epoch-0002"
    manifest = last / "manifest.json"
    best = f"{home}#2"
    return [
        Kind("run.json", home / "run.json", resumed, of_json),
        Kind("run.json, judged", home / "run.json", lambda: subject(str(home)), of_json),
        Kind("manifest", manifest, lambda: subject(best), of_digested_json, whole=True),
        Kind("state", last / STATE, continued, forged_checkpoint(manifest, STATE, of_pickle), whole=True),
        Kind("state, checked", last / STATE, resumed, forged_checkpoint(manifest, STATE, of_pickle)),
        Kind("weights", last / WEIGHTS, lambda: subject(best), forged_checkpoint(manifest, WEIGHTS, of_tensors), True),
        Kind(
            "weights, resumed", last / WEIGHTS, continued, forged_checkpoint(manifest, WEIGHTS, of_tensors), whole=True
        ),
        Kind("published", model_home / "manifest.json", lambda: subject(str(model_home)), of_digested_json, whole=True),
        Kind(
            "experiment.yaml",
            model_home / "experiment.yaml",
            lambda: subject(str(model_home)),
            forged_checkpoint(model_home / "manifest.json", "experiment.yaml", of_yaml),
            whole=True,
        ),
        Kind("neurons", home / "sensitivity" / "epoch-0002.parquet", neurons, of_table, whole=True),
    ]


def of_a_sweep(folder: Path) -> list[Kind]:
    recipe = {"search": {"stabilize.weight": {"uniform": [0, 1]}}, "sweep": {"trials": 2}}
    storage = open_place(str(folder / "runs"))
    sweep = StoredSweep("tune-mine", storage.child("tune-mine"), recipe, "id-in-mlflow")
    sweep.save()
    rungs = {1: RungState(3, 0.9, 0.5, 0.5)}
    for number in range(2):
        sweep.keep(TrialState(f"t{number}", number, {"stabilize.weight": 0.5}, "finished", rungs=rungs))
    sweep.keep_champion("t0", "champion", {"robust": 0.5})

    def resumed() -> Any:
        found = find_sweep(f"{folder}/runs/tune-mine", "")
        return found.plan.base, found.trials(), found.champion("t0")

    home = folder / "runs" / "tune-mine"
    return [
        Kind("sweep.json", home / "sweep.json", resumed, of_json),
        Kind("trial.json", home / "trials" / "t1" / "trial.json", resumed, of_json),
        Kind("champion.json", home / "champion.json", resumed, of_json),
    ]


def of_an_evaluation(folder: Path) -> list[Kind]:
    draw = np.random.default_rng(0)
    split = ImageSet(draw.integers(0, 256, (12, 1, 8, 8), dtype=np.uint8), LABELS.astype(np.int64))
    threat = Threat("linf", 0.1)
    judgement = Judgement(threat, {"pgd": LastIterate(attack_named("pgd", threat, steps=1, step_size=0.1, restarts=1))})
    model = build("lenet5", shape=(1, 8, 8), classes=3, mean=(0.0,), std=(1.0,), seed=0).eval()
    images, labels = split.tensors()
    found = examine(model, images[slice(None)], labels, torch.arange(12), judgement, torch.device("cpu"))
    place = open_place(str(folder / "runs" / EVALUATION))
    evaluation = StoredEvaluation(EVALUATION, place, EXAMINATION, "abc", "a" * 64, None, "d" * 64)
    evaluation.save()
    rows = found.ledger.rows
    half = type(found.ledger)(rows.iloc[:6]), type(found.ledger)(rows.iloc[6:].reset_index(drop=True))
    for number in (0, 1):
        evaluation.keep(number, half[number], 1.5)
    older = replace(evaluation, place=open_place(str(folder / "runs" / "older")), format=1)
    for number in (0, 1):
        buffer = io.BytesIO()
        half[number].rows.to_parquet(buffer, index=False)
        older.place.put(f"ledger/shard-{number:05d}.parquet", buffer.getvalue())
    evaluation.keep_checks([Check("starts", True, {"spread": 0.25}, "Starts agree.")])
    judged = dict(enumerate(LABELS.tolist()))
    data = {"name": "digits", "split": "test", "images": 12, "choice": "stratified", "digest": "d" * 64}
    known: dict[str, Any] = {"model": {**MODEL, "computes": FINGERPRINT}, "source": None, "settings": SETTINGS}
    made = make_claim(
        found.ledger,
        examination=EXAMINATION.model_dump(mode="json"),
        data=data,
        versions={},
        commit="",
        seconds=1.0,
        **known,
    )
    (folder / "claim.json").write_text(json.dumps(made))
    (folder / "baseline.json").write_text(json.dumps({"corruption_errors": {"fog": [0.1, 0.2, 0.3, 0.4, 0.5]}}))
    pairs = open_place(str(folder / "pairs"))
    arrays = {"images": np.asarray(split.images), "adversarial": found.adversarial.numpy(), "labels": split.labels}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays, image=np.arange(12), evaluation=np.array("abc"))
    pairs.put("pairs-00000.npz", content.getvalue())
    about = {"model": {"sha256": "abc"}, "threat": {"norm": "linf", "eps": 0.1}, "data": {"name": "digits"}}
    pairs.put("pairs.json", json.dumps({**about, "evaluation": "abc"}).encode())

    def stored() -> Any:
        found = find_evaluation(f"{folder}/runs/{EVALUATION}", "")
        return vars(found), found.checks()

    def counted(of: StoredEvaluation) -> Any:
        shards = of.shards(judged)
        if shards.left_out:
            raise InputError("resume", EVALUATION, "; ".join(shards.left_out.values()))
        if of.format == 1:  # whose values nobody can check
            return [(part.robust, part.clean, part.attacks, part.spent, part.classes) for part in shards.done.values()]
        return {number: part.rows for number, part in shards.done.items()}

    def verified() -> Any:
        claim = read_claim(str(folder / "claim.json"))
        fields_to_verify(claim, {"data": {"limit": 3}} if claim["images"] > 3 else {})
        of_data = {"data_digest": "d" * 64, **known}
        settings = dict.fromkeys(claim["attacks"], SETTINGS["pgd"])
        different = differences(claim, **{**of_data, "settings": settings})
        if claim["images"] == 12:
            return verify(claim, found_ledger, **{**of_data, "settings": settings}), different
        return claim

    found_ledger = found.ledger

    def saved() -> Any:
        read = read_pairs(find_pairs(str(folder / "pairs")), split, "abc")
        return read.numbers, read.rows, read.adversarial

    def baseline() -> Any:
        examination = Examination.parse({"baseline": str(folder / "baseline.json"), "corruptions": ["fog"]})
        return examination_preflight._baseline(examination)

    home, older_shard = folder / "runs" / EVALUATION, folder / "runs" / "older" / "ledger" / "shard-00001.parquet"
    return [
        Kind("evaluation.json", home / "evaluation.json", stored, of_digested_json, whole=True),
        Kind("checks.json", home / "checks.json", stored, of_digested_json, whole=True),
        Kind("ledger", home / "ledger" / "shard-00001.parquet", lambda: counted(evaluation), of_table, whole=True),
        Kind("older ledger", older_shard, lambda: counted(older), of_table),
        Kind("claim", folder / "claim.json", verified, of_json),
        Kind("baseline", folder / "baseline.json", baseline, of_json),
        Kind("pairs", folder / "pairs" / "pairs-00000.npz", saved, of_npz, whole=True),
        Kind("pairs.json", folder / "pairs" / "pairs.json", saved, of_json),
    ]


def of_data(folder: Path) -> list[Kind]:
    draw = np.random.default_rng(1)
    images, labels = draw.integers(0, 256, (12, 6, 5), dtype=np.uint8), LABELS
    np.savez(folder / "data.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    np.savez_compressed(folder / "extra.npz", images=images, labels=labels)
    np.savez(folder / "weights.npz", weight=draw.random((3, 4)), bias=np.zeros(3, np.float32))
    torch.save({"state_dict": {"weight": torch.ones(3, 4), "bias": torch.zeros(3)}, "epoch": 3}, folder / "weights.pt")
    remember_survey("key", Survey(draw.integers(0, 256, (12, 32), dtype=np.uint8), {3: "cannot be decoded"}))

    def splits() -> Any:
        found = load("npz", Source(folder / "data.npz"), validation_fraction=0.25, seed=0)
        return [(np.asarray(one.images), one.labels) for one in (found.train, found.validation, found.test)]

    def extra() -> Any:
        found = read_extra(folder / "extra.npz")
        return np.asarray(found.images), found.labels

    def survey() -> Any:
        found = known_survey("key", 12)
        return found and (found.digests, found.problems)

    def weights(name: str) -> Callable[[], Any]:
        return lambda: state_of((folder / name).read_bytes(), name)

    cache = folder / "cache" / "distsens" / "key.npz"
    return [
        Kind("data.npz", folder / "data.npz", splits, of_npz, whole=True),
        Kind("extra.npz", folder / "extra.npz", extra, of_npz, whole=True),
        Kind("weights.npz", folder / "weights.npz", weights("weights.npz"), of_npz),
        Kind("weights.pt", folder / "weights.pt", weights("weights.pt"), of_pickle),
        Kind("survey", cache, survey, of_npz, whole=True, absent=True),
    ]
