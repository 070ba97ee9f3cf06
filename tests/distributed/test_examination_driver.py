"""What the evaluation's driver does when something goes wrong, without a Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from distsens.command_line import parse_flags, take_addresses
from distsens.distributed import examination_driver
from distsens.distributed.endings import EndedError
from distsens.distributed.evaluations import StoredEvaluation, check_further, find_evaluation
from distsens.distributed.examination_driver import (
    check_same,
    command_to_resume,
    ended_whatever_happens,
    forget_pairs,
    model_of,
    name_after,
    shards_left,
)
from distsens.distributed.examination_preflight import CheckedExamination
from distsens.errors import InputError
from distsens.evaluation import Architecture, Check, Ledger, Subject
from distsens.examination import Examination
from distsens.experiment import Experiment, Workers
from distsens.storage import open_place
from distsens.suite import load_judged
from distsens.tracking import TrackedRun


def stored(folder: Path, **changes: Any) -> StoredEvaluation:
    known = {
        "examination": Examination(),
        "mlflow_run_id": "abc",
        "model_sha256": "a" * 64,
        "source_sha256": None,
        "data_digest": "d" * 64,
    }
    return StoredEvaluation("evaluate-net", open_place(str(folder)), **{**known, **changes})


def test_a_run_does_not_stay_running_whatever_raises(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracked = TrackedRun.create(uri, experiment="e", name="evaluate", params={}, tags={}, artifact_root=None)
    with pytest.raises(ZeroDivisionError), ended_whatever_happens(tracked, print):
        raise ZeroDivisionError("nobody thought of this")
    run = MlflowClient(uri).get_run(tracked.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["distsens.outcome"] == "ZeroDivisionError: nobody thought of this"


def test_seconds_of_all_sessions_are_kept_with_every_shard(tmp_path: Path) -> None:
    evaluation = stored(tmp_path)
    evaluation.save()
    assert find_evaluation(str(tmp_path), "").seconds == 0.0
    evaluation.keep(0, Ledger.of({"image": [0], "broken_by": [None]}), 12.5)
    assert find_evaluation(str(tmp_path), "").seconds == 12.5


@pytest.mark.parametrize("model", ["my net", "Ünïversal/net:3", "n" * 300, "", "resnet-18.v2"])
def test_every_model_has_a_name_that_storage_takes(tmp_path: Path, model: str) -> None:
    place = open_place(str(tmp_path)).child(name_after("evaluate", model))
    place.child("ledger")
    assert name_after("evaluate", "my net").startswith("evaluate-my-net-")


def subject(weights: bytes) -> Subject:
    return Subject("net", "net.pt", Architecture("lenet5"), weights)


def checked(**changes: Any) -> CheckedExamination:
    examination = Examination.parse({"data": {"name": "digits", "limit": 5}, "threat": {"norm": "linf", "eps": 0.1}})
    dataset, split = load_judged(examination, None)
    known = {
        "examination": examination,
        "subject": subject(b"weights"),
        "source": subject(b"another's"),
        "dataset": dataset,
        "split": split,
        "storage": open_place("runs"),
        "tracking_uri": "",
        "artifact_root": None,
        "baseline": None,
        "attacks": {},
        "warnings": (),
    }
    return CheckedExamination(**{**known, **changes})


def test_an_evaluation_goes_on_with_the_same_models_images_and_examination_only(tmp_path: Path) -> None:
    now = checked()
    assert now.source is not None
    before = stored(
        tmp_path,
        examination=now.examination,
        model_sha256=now.subject.sha256,
        source_sha256=now.source.sha256,
        data_digest=now.data_digest,
    )
    check_same(before, now)
    check_same(before, checked(examination=now.examination.model_copy(update={"workers": Workers(num=7)})))
    for other, what in (
        ({"subject": subject(b"other")}, "model is"),
        ({"source": subject(b"other")}, "model that transfer names is"),
        ({"source": None}, "model that transfer names is"),
        ({"examination": now.examination.model_copy(update={"seed": 1})}, "examination is"),
        ({"dataset": dataclasses.replace(now.dataset, test=now.dataset.validation)}, "images is"),
    ):
        with pytest.raises(InputError, match=f"resume: got 'evaluate-net'; the {what} another than when it began"):
            check_same(before, checked(**other))


def test_pairs_that_are_wanted_only_later_would_be_of_a_part_and_are_refused(tmp_path: Path) -> None:
    now = checked()
    assert now.source is not None
    before = stored(
        tmp_path,
        examination=now.examination,
        model_sha256=now.subject.sha256,
        source_sha256=now.source.sha256,
        data_digest=now.data_digest,
    )
    later = checked(examination=now.examination.model_copy(update={"examples": "s3://bucket/pairs"}))
    check_same(before, later)  # no shard is done
    before.keep(0, Ledger.of({"image": [0], "broken_by": [None]}), 1.0)
    with pytest.raises(InputError, match="examples: got 's3://bucket/pairs'; the same as when it began"):
        check_same(before, later)


def test_evaluations_go_on_together_and_with_models_that_had_not_begun(tmp_path: Path) -> None:
    examinations = [
        Examination.parse({"model": {"address": str(tmp_path / f"{name}.pt")}, "data": {"name": "digits", "limit": 5}})
        for name in ("a", "b", "my c")
    ]
    begun = [stored(tmp_path / str(number), examination=one) for number, one in enumerate(examinations)]
    check_further(begun[:2], [str(tmp_path / "my c.pt")])
    with pytest.raises(InputError, match="resume: got 'evaluate-net'; name each evaluation once"):
        check_further([*begun, begun[1]], [])
    with pytest.raises(InputError, match=r"model: got '.*b.pt'; leave it out: an evaluation is resumed"):
        check_further(begun, [str(tmp_path / "b.pt")])
    judged = [checked(examination=one) for one in examinations]
    done = [one.place.url for one in begun]
    command = ["python", "jobs/evaluate.py", "--resume", str(tmp_path / "0")]
    one, two = str(tmp_path / "1"), str(tmp_path / "2")
    assert command_to_resume(done, begun, judged) == [*command, one, two]
    further = ["--model", str(tmp_path / "b.pt"), str(tmp_path / "my c.pt")]
    assert command_to_resume(done[:1], [None] * 3, judged) == [*command, *further]
    assert command_to_resume(done[:1], [*begun[:2], None], judged) == [*command, one, further[0], further[2]]


def test_the_command_that_resumes_says_what_was_said_of_files_of_weights_and_finds_any_folder(tmp_path: Path) -> None:
    said = {"factory": "lenet5", "mean": [0.1307], "std": [0.25, 0.5, 1 / 3], "small_images": True}
    models = [{"address": "runs/r"}, {"address": "a.pt@nets:small", **said}, {"address": "b.pt", **said}]
    judged = [checked(examination=Examination.parse({"model": model})) for model in models]
    begun = stored(tmp_path / "a b")
    begun.save()
    words = command_to_resume([begun.place.url], [None] * 3, judged)
    assert words[3] == str(tmp_path / "a b")
    assert find_evaluation(words[3], "nowhere").place.url == begun.place.url
    flags = parse_flags(words[4:])
    assert take_addresses(flags) == ["a.pt@nets:small", "b.pt"]
    assert Examination.parse(flags).model == judged[2].examination.model.model_copy(update={"address": ""})


def test_checks_for_masking_are_kept_and_a_damaged_file_of_them_is_named(tmp_path: Path) -> None:
    evaluation = stored(tmp_path)
    assert evaluation.checks() is None
    checks = [Check("starts", True, {"spread": 0.25}, "Starts agree.")]
    evaluation.keep_checks(checks)
    assert evaluation.checks() == checks
    (tmp_path / "checks.json").write_text("[{}]")
    with pytest.raises(InputError, match=r"resume: got 'evaluate-net'; its checks.json is damaged"):
        evaluation.checks()


def test_trainings_of_one_recipe_differ_in_their_seed_alone() -> None:
    def training(**fields: Any) -> dict[str, Any]:
        own = Subject("run", "runs/run", Architecture("lenet5"), b"", Experiment.parse(fields), run="run")
        found: dict[str, Any] = model_of(checked(subject=own))["training"]
        return found

    first, second = training(seed=1, name="a", workers={"num": 2}), training(seed=2, name="b")
    assert (first["seed"], second["seed"], first["selected"]) == (1, 2, "best")
    assert first["recipe"] == second["recipe"]
    for change in ({"training": {"lr": 0.5}}, {"threat": {"eps": 0.01}}, {"data": {"limit": 10}}):
        assert training(seed=1, **change)["recipe"] != first["recipe"]
    assert model_of(checked())["training"] is None


def test_an_evaluation_that_was_moved_finds_its_model_and_examples_where_they_are_now(tmp_path: Path) -> None:
    old, new = tmp_path / "runs", tmp_path / "elsewhere"
    fields = {"model": {"address": f"{old}/trained#best"}, "examples": (old / "pairs").as_uri()}
    places = {"storage": {"path": old.as_uri()}, "tracking": {"uri": f"sqlite:///{old}/mlflow.db"}}
    stored(old / "evaluate-net", examination=Examination.parse({**fields, **places})).save()
    (old / "trained").mkdir()
    old.rename(new)
    found = find_evaluation(str(new / "evaluate-net"), "").examination
    assert found.storage.path == new.as_uri()
    assert (found.model.address, found.examples) == (f"{new}/trained#best", (new / "pairs").as_uri())


@pytest.mark.parametrize(("lost", "fails"), [(2, False), (3, True)])
def test_too_many_images_without_finite_logits_end_an_evaluation_as_soon_as_they_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int, fails: bool
) -> None:
    """Of 40 images in shards of 10, some of the first one are lost; who resumes it hears the same."""

    class Examiners:
        def __init__(self, *_: Any) -> None:
            pass

        def examine(self, shards: Any, *_: Any, **__: Any) -> Any:
            for number, numbers in shards.items():
                judged.append(number)
                not_finite = [number == 0 and row < lost for row in range(len(numbers))]
                columns = {"image": list(numbers), "broken_by": [None] * len(numbers), "not_finite": not_finite}
                yield number, Ledger.of(columns)

    judged: list[int] = []
    monkeypatch.setattr(examination_driver, "Examiners", Examiners)
    monkeypatch.setattr(examination_driver, "share_split", lambda _: (None, None))
    now = checked(examination=Examination.parse({"data": {"images": list(range(40))}, "shard": 10}))
    view: Any = SimpleNamespace(say=print, begin=lambda *_: None, judged=lambda _: None)
    arguments = (now, stored(tmp_path), {}, None, view, 0.0)
    if fails:
        with pytest.raises(EndedError, match="logits are NaN or infinite for 3 of 40 images, more than 5%"):
            examination_driver._judge(*arguments)
        assert judged == [0]
        done = {0: Ledger.from_parquet(stored(tmp_path).place.get("ledger/shard-00000.parquet"))}
        with pytest.raises(EndedError, match="for 3 of 40 images"):
            examination_driver._judge(now, stored(tmp_path), done, None, view, 0.0)
        assert judged == [0]
    else:
        examination_driver._judge(*arguments)
        assert judged == [0, 1, 2, 3]


def part(of: CheckedExamination, rows: Sequence[int]) -> Ledger:
    return Ledger.of({"image": of.numbers[list(rows)].tolist(), "broken_by": [None] * len(rows)})


def test_a_ledger_of_other_shards_is_gone_on_with_by_any_number_of_workers() -> None:
    rows = tuple(range(0, 60, 2))
    now = checked().examination
    data = now.data.model_copy(update={"limit": 100, "images": rows})
    for workers in (1, 2, 5):
        examination = now.model_copy(update={"data": data, "workers": Workers(num=workers)})
        one = checked(examination=examination, split=load_judged(examination, None)[1])
        done = {0: part(one, rows[:10]), 4: part(one, rows[20:23])}
        left = shards_left(one, done)
        assert [row for shard in left.values() for row in shard] == [*rows[10:20], *rows[23:]]
        assert min(left) == 5, "no ledger is written over"
        assert len(left) >= 2 * workers
    done[5] = part(one, [*rows[10:20], *rows[23:]])
    assert shards_left(one, done) == {}


def test_pairs_of_shards_that_were_not_finished_are_forgotten(tmp_path: Path) -> None:
    pairs = open_place(str(tmp_path))
    for name in ("a/pairs-00000.npz", "a/pairs-00007.npz", "a/pairs.json", "b/pairs-00007.npz"):
        pairs.put(name, b"")
    forget_pairs(pairs, "a", {0: part(checked(), [1])})
    assert pairs.keys() == ["a/pairs-00000.npz", "a/pairs.json", "b/pairs-00007.npz"]
