"""Which of an evaluation's shards are counted when it goes on: those that are what their names say, and no others."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from distsens.distributed.evaluations import Shards, StoredEvaluation, find_evaluation
from distsens.errors import InputError
from distsens.evaluation import Check, Ledger, examine
from distsens.evaluation.ledger import broken_column
from distsens.examination import Examination
from distsens.storage import open_place
from distsens.suite import Materials, build_judgement, load_judged
from tests.evaluation.ledgers import ledger_of

LABELS = {number: number % 10 for number in range(40)}
FIRST, SECOND = "ledger/shard-00000.parquet", "ledger/shard-00001.parquet"


def stored(folder: Path, **changes: Any) -> StoredEvaluation:
    known = {
        "examination": Examination.parse({"attacks": ["pgd"]}),
        "mlflow_run_id": "abc",
        "model_sha256": "a" * 64,
        "source_sha256": None,
        "data_digest": "d" * 64,
    }
    return StoredEvaluation("evaluate-net", open_place(str(folder)), **{**known, **changes})


def ledger(images: range) -> Ledger:
    """Every other image is broken by pgd."""
    broken_by = ["pgd" if image % 2 == 0 else None for image in images]
    return ledger_of({image: LABELS[image] for image in images}, broken_by, ["pgd"])


def judged(folder: Path, **changes: Any) -> StoredEvaluation:
    """Forty images in two shards."""
    evaluation = stored(folder, **changes)
    evaluation.save()
    for number in (0, 1):
        evaluation.keep(number, ledger(range(20 * number, 20 * number + 20)), 1.0)
    if evaluation.format == 1:  # as earlier versions wrote them
        for key in (FIRST, SECOND):
            rows = Ledger.from_parquet(evaluation.place.get(key)).rows
            rows.to_parquet(folder / key, index=False)
    return evaluation


def again(evaluation: StoredEvaluation) -> Shards:
    return find_evaluation(evaluation.place.url, "").shards(LABELS)


@pytest.mark.parametrize("version", [1, 2])
def test_shards_that_nobody_touched_are_counted(tmp_path: Path, version: int) -> None:
    found = again(judged(tmp_path, format=version))
    assert [len(part) for part in found.done.values()] == [20, 20]
    assert (found.left_out, found.unsealed) == ({}, 2 if version == 1 else 0)
    pd.testing.assert_frame_equal(found.done[1].rows, ledger(range(20, 40)).rows)


def exchange(folder: Path) -> None:
    first, second = (folder / key for key in (FIRST, SECOND))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def copy(folder: Path) -> None:
    (folder / SECOND).write_bytes((folder / FIRST).read_bytes())


def cut(folder: Path) -> None:
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:-9])


def empty(folder: Path) -> None:
    (folder / FIRST).write_bytes(b"")


def another(folder: Path) -> None:
    other = judged(folder / "other", mlflow_run_id="another")
    (folder / FIRST).write_bytes(other.place.get(FIRST))


def unsealed(folder: Path) -> None:
    ledger(range(20)).rows.to_parquet(folder / FIRST, index=False)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (exchange, {FIRST: "it is shard 1", SECOND: "it is shard 0"}),
        (copy, {SECOND: "it is shard 0"}),
        (cut, {FIRST: "its SHA-256 is not the one that it carries"}),
        (empty, {FIRST: "it is no Parquet file"}),
        (another, {FIRST: "it is of another evaluation"}),
        (unsealed, {FIRST: "it carries no digest"}),
    ],
)
def test_a_shard_that_is_not_what_its_name_says_is_judged_again_with_one_line_and_kept(
    tmp_path: Path, spoil: Callable[[Path], None], why: dict[str, str]
) -> None:
    evaluation = judged(tmp_path)
    spoil(tmp_path)
    spoiled = {key: evaluation.place.get(key) for key in why}
    found = again(evaluation)
    assert found.left_out.keys() == why.keys()
    lines = list(evaluation.set_aside(found))
    for line, (key, reason) in zip(lines, why.items(), strict=True):
        assert line.startswith(f"{key} is not counted, its images are judged again: {reason}")
        assert evaluation.place.get(line.rpartition(" ")[2]) == spoiled[key]
    assert not again(evaluation).left_out, "it is said once"
    assert sum(len(part) for part in again(evaluation).done.values()) == 40 - 20 * len(why)


def test_any_flipped_bit_of_a_shard_is_noticed(tmp_path: Path) -> None:
    evaluation = judged(tmp_path)
    content = evaluation.place.get(FIRST)
    draw = random.Random(0)
    for bit in [*draw.sample(range(8 * len(content)), 300), *range(8 * len(content) - 64, 8 * len(content))]:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / FIRST).write_bytes(flipped)
        assert list(evaluation.shards(LABELS).left_out) == [FIRST], bit


def relabel(rows: pd.DataFrame) -> None:
    rows["label"] = (rows["label"] + 1) % 10


def of_another_attack(rows: pd.DataFrame) -> None:
    rows.rename(columns={broken_column("pgd"): broken_column("cw")}, inplace=True)


def other_image(rows: pd.DataFrame) -> None:
    rows.loc[0, "image"] = 99


def unbroken(rows: pd.DataFrame) -> None:
    rows.loc[0, "broken_by"] = None


def other_type(rows: pd.DataFrame) -> None:
    rows["image"] = rows["image"].astype("string")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (relabel, "its labels are not those of its images"),
        (of_another_attack, "it should have, or not have, the columns broken/cw, broken/pgd"),
        (other_image, "it is about image 99, which is not judged"),
        (unbroken, "its verdicts under pgd are not those that it counts"),
        (other_type, "its column image is string"),
    ],
)
def test_a_shard_of_an_earlier_version_must_hold_what_is_asked_of_its_images(
    tmp_path: Path, spoil: Callable[[pd.DataFrame], None], why: str
) -> None:
    evaluation = judged(tmp_path, format=1)
    rows = ledger(range(20)).rows
    spoil(rows)
    rows.to_parquet(tmp_path / FIRST, index=False)
    assert again(evaluation).left_out == {FIRST: why}


def test_of_two_shards_of_an_earlier_version_with_the_same_images_none_is_counted(tmp_path: Path) -> None:
    evaluation = judged(tmp_path, format=1)
    copy(tmp_path)
    evaluation.keep(2, ledger(range(5)), 1.0)
    found = again(evaluation)
    assert found.left_out == dict.fromkeys((FIRST, SECOND, _third()), "another shard has images of it, too")


def _third() -> str:
    return "ledger/shard-00002.parquet"


def test_no_image_is_counted_twice_whoever_joins_shards() -> None:
    with pytest.raises(InputError, match="ledger: got 3; this image is in two of its parts"):
        Ledger.join([ledger(range(4)), ledger(range(3, 6))])


@pytest.mark.parametrize("change", [{"seconds": 9.0}, {"format": 1}, {"model_sha256": "b" * 64}, {"more": 1}])
def test_a_record_that_was_changed_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    judged(tmp_path)
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=r"its evaluation.json is damaged: it does not match its own"):
        find_evaluation(str(tmp_path), "")


def test_an_evaluation_of_an_earlier_version_goes_on_as_it_began(tmp_path: Path) -> None:
    evaluation = judged(tmp_path, format=1)
    (tmp_path / "checks.json").write_text(json.dumps([dataclasses.asdict(Check("a", True, {}, "b"))]))
    found = find_evaluation(str(tmp_path), "")
    assert found.checks() == [Check("a", True, {}, "b")]
    found.keep(2, ledger(range(0)), 5.0)
    assert (find_evaluation(str(tmp_path), "").seconds, evaluation.format) == (5.0, 1)
    assert again(evaluation).unsealed == 2


class SometimesNothing(torch.nn.Module):
    """A linear classifier that is right on these images, and returns no numbers for dark ones."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        super().__init__()
        wanted = torch.nn.functional.one_hot(labels, 10).float()
        self.weight = torch.nn.Parameter(torch.linalg.lstsq(images.flatten(1), wanted).solution)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        dark = images.mean((1, 2, 3)) < 0.28
        return torch.where(dark[:, None], float("nan"), images.flatten(1) @ self.weight)


@pytest.mark.parametrize("every_attack", [False, True])
def test_whatever_an_examination_asks_its_own_shards_are_counted(tmp_path: Path, every_attack: bool) -> None:
    fields = {"attacks": ["pgd", "mim", "square"], "eps_curve": ["1/255", 0.1], "corruptions": ["brightness"]}
    fields |= {"data": {"name": "digits", "limit": 40}, "threat": {"norm": "linf", "eps": 0.05}}
    fields |= {"pgd": {"steps": 2, "restarts": 1}, "every_attack": every_attack}
    examination = Examination.parse(fields)
    images, labels = load_judged(examination, None)[1].tensors()
    judgement = build_judgement(examination, Materials(10, None, None, None))
    numbers = torch.arange(100, 140)
    square: Any = judgement.attacks["square"]
    attacks = {**judgement.attacks, "square": dataclasses.replace(square, queries=5)}
    judgement = dataclasses.replace(judgement, attacks=attacks)
    model = SometimesNothing(images[slice(None)] / 255.0, labels)
    found = examine(model, images[slice(None)], labels, numbers, judgement, torch.device("cpu")).ledger
    assert 0 < found.not_finite < found.clean.count < len(found)
    assert 0 < found.robust.count < found.clean.count
    known = dict(zip(numbers.tolist(), labels.tolist(), strict=True))
    for version in (1, 2):
        evaluation = stored(tmp_path / str(version), examination=examination, format=version)
        evaluation.save()
        evaluation.keep(0, found, 1.0)
        if version == 1:
            found.rows.to_parquet(tmp_path / "1" / FIRST, index=False)
        shards = find_evaluation(evaluation.place.url, "").shards(known)
        assert shards.left_out == {}
        pd.testing.assert_frame_equal(shards.done[0].rows, found.rows)
