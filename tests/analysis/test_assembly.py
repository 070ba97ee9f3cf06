from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from distsens.analysis import Analysis, build_conditions, build_plan, find_pairs, intervened_layers, read_pairs
from distsens.attacks import Threat
from distsens.data import ImageSet
from distsens.errors import InputError

THREAT = Threat("linf", 0.2)
MODEL = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Linear(5, 3))


def analysis(**fields: Any) -> Analysis:
    return Analysis.parse({"threat": {"norm": "linf", "eps": 0.2}, **fields})


def split_of(count: int) -> ImageSet:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)
    return ImageSet(images, np.zeros(count, dtype=np.int64))


def save(folder: Path, split: ImageSet, *shards: list[int]) -> npt.NDArray[np.float32]:
    """Store pairs as ``jobs/evaluate.py --save-examples`` does; the twins of the whole split."""
    folder.mkdir(parents=True)
    images = np.asarray(split.images)
    twins = (images / 255.0 * 0.9).astype(np.float32)
    for number, rows in enumerate(shards):
        arrays = {"images": images[rows], "adversarial": twins[rows], "labels": split.labels[rows]}
        np.savez_compressed(folder / f"pairs-{number:05d}.npz", image=np.array(rows), **arrays)
    return twins


def test_conditions_are_the_attacks_then_the_radii() -> None:
    conditions = build_conditions(analysis(attacks=["pgd", "fgsm"], eps=["1/10"], pgd={"steps": 7}), THREAT)
    assert list(conditions) == ["pgd", "fgsm", "pgd eps 0.1"]
    assert [(one.steps, one.threat.eps) for one in conditions.values()] == [(7, 0.2), (1, 0.2), (7, 0.1)]
    assert conditions["pgd eps 0.1"].step_size == pytest.approx(2.5 * 0.1 / 7)
    assert build_conditions(analysis(pairs="somewhere"), THREAT) == {}


def test_layers_intervened_on_are_among_those_measured() -> None:
    images = torch.zeros(1, 1, 4, 4)
    assert build_plan(analysis(), THREAT, ("0", "2"), 3).layers == ("0", "2")
    assert intervened_layers(analysis(ablation={"layers": ["2"]}), MODEL, ("0", "2"), images) == ("2",)
    with pytest.raises(InputError, match=r"ablation.layers.*measured are 0"):
        intervened_layers(analysis(ablation={"layers": ["2"]}), MODEL, ("0",), images)
    assert build_plan(analysis(), THREAT, ("0", "2"), 101).classes == 0
    assert build_plan(analysis(by_class=101), THREAT, ("0", "2"), 101).classes == 101


def test_saved_pairs_are_read_in_the_order_of_their_images(tmp_path: Path) -> None:
    split = split_of(8)
    twins = save(tmp_path / "pairs", split, [4, 5, 6], [0, 2])
    found = read_pairs(find_pairs(str(tmp_path / "pairs")), split, "abc")
    assert found.numbers.tolist() == [0, 2, 4, 5, 6]
    assert np.array_equal(found.adversarial, twins[[0, 2, 4, 5, 6]])
    few = read_pairs(find_pairs(str(tmp_path / "pairs")), split.take(np.arange(3)), "abc")
    assert few.numbers.tolist() == [0, 2]


def test_saved_pairs_are_those_of_the_images_that_are_analysed_whatever_part_that_is(
    tmp_path: Path,
) -> None:
    split = split_of(8)
    twins = save(tmp_path / "pairs", split, [1, 4, 6], [7])
    analysed = np.array([0, 4, 5, 7])
    found = read_pairs(find_pairs(str(tmp_path / "pairs")), split.take(analysed), "abc", analysed)
    assert (found.numbers.tolist(), found.rows.tolist()) == ([4, 7], [1, 3])
    assert np.array_equal(found.adversarial, twins[[4, 7]])


def test_other_pairs_are_refused(tmp_path: Path) -> None:
    split = split_of(8)
    save(tmp_path / "twice", split, [0, 1], [1, 2])
    save(tmp_path / "beyond", split, [6, 7])
    save(tmp_path / "other", ImageSet(np.asarray(split.images)[::-1].copy(), split.labels), [0, 1])
    save(tmp_path / "damaged", split, [0])
    (tmp_path / "damaged" / "pairs-00000.npz").write_bytes(b"no")
    for folder, words in (
        ("twice", "there twice"),
        ("beyond", "none is of the 3 images"),
        ("other", "not those of the data set"),
        ("damaged", "cannot be read"),
        ("absent", "no pairs-"),
    ):
        with pytest.raises(InputError, match=words):
            read_pairs(find_pairs(str(tmp_path / folder)), split.take(np.arange(3)), "abc")


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (np.nan, "is not in [0, 1] or no more than 0.25 from it in linf"),
        (1e30, "is not in [0, 1] or"),
        (-0.01, "is not in [0, 1] or"),
        (0.76, "no more than 0.25 from it in linf"),
    ],
)
def test_pairs_whose_values_are_none_of_the_ball_are_refused_by_their_image(
    tmp_path: Path, value: float, fault: str
) -> None:
    split = ImageSet(np.full((8, 1, 4, 4), 128, np.uint8), np.zeros(8, dtype=np.int64))
    twins = save(tmp_path / "pairs", split, [4, 5], [6, 7])
    about = {"model": {"sha256": "abc"}, "threat": {"norm": "linf", "eps": 0.25}}
    (tmp_path / "pairs" / "pairs.json").write_text(json.dumps(about))
    assert read_pairs(find_pairs(str(tmp_path / "pairs")), split, "abc").numbers.tolist() == [4, 5, 6, 7]
    shard = tmp_path / "pairs" / "pairs-00001.npz"
    arrays = dict(np.load(shard))
    arrays["adversarial"] = np.array(twins[[6, 7]])
    arrays["adversarial"][1, 0, 2, 3] = value
    np.savez_compressed(shard, **arrays)
    with pytest.raises(InputError, match=r"pairs-00001.npz'; cannot be read: what was made of image 7 ") as raised:
        read_pairs(find_pairs(str(tmp_path / "pairs")), split, "abc")
    assert fault in str(raised.value)
    (tmp_path / "pairs" / "pairs.json").unlink()
    if not 0 <= value <= 1:
        with pytest.raises(InputError, match=r"what was made of image 7 is not in \[0, 1\]$"):
            read_pairs(find_pairs(str(tmp_path / "pairs")), split, "abc")


def test_pairs_lie_in_the_folder_of_their_evaluation_which_names_their_model(tmp_path: Path) -> None:
    split = split_of(4)
    save(tmp_path / "pairs" / "evaluate-a", split, [0, 1])
    about = {"model": {"sha256": "abc"}, "threat": {"norm": "l2", "eps": 1.5}}
    (tmp_path / "pairs" / "evaluate-a" / "pairs.json").write_text(json.dumps(about))
    assert find_pairs(str(tmp_path / "pairs")).threat == Threat("l2", 1.5)
    assert read_pairs(find_pairs(str(tmp_path / "pairs")), split, "abc").numbers.tolist() == [0, 1]
    with pytest.raises(InputError, match="another model"):
        read_pairs(find_pairs(str(tmp_path / "pairs")), split, "abd")
    (tmp_path / "pairs" / "evaluate-a" / "pairs.json").write_text("{}")
    with pytest.raises(InputError, match=r"pairs.json is damaged"):
        read_pairs(find_pairs(str(tmp_path / "pairs")), split, "abc")
    save(tmp_path / "pairs" / "evaluate-b", split, [2])
    with pytest.raises(InputError, match=r"several evaluations.*evaluate-a, evaluate-b"):
        read_pairs(find_pairs(str(tmp_path / "pairs")), split, "abc")


def test_pairs_of_another_evaluation_are_noticed(tmp_path: Path) -> None:
    split = split_of(6)
    twins = save(tmp_path / "ours", split, [0, 1, 2], [3, 4, 5])
    about = {"threat": {"norm": "linf", "eps": 0.2}, "model": {"sha256": "abc"}, "data": {}, "evaluation": "ours"}
    (tmp_path / "ours" / "pairs.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"pairs-00000.npz.*it is of another evaluation than its folder: None"):
        read_pairs(find_pairs(str(tmp_path / "ours")), split, "abc")
    for file, maker in (("pairs-00000.npz", "ours"), ("pairs-00001.npz", "ours"), ("pairs-00001.npz", "theirs")):
        path = tmp_path / "ours" / file
        with np.load(path) as stored:
            arrays = {**stored, "evaluation": np.array(maker)}
        np.savez_compressed(path, **arrays)
        if maker == "ours" and file == "pairs-00001.npz":
            found = read_pairs(find_pairs(str(tmp_path / "ours")), split, "abc").adversarial
            np.testing.assert_array_equal(found, twins)
    with pytest.raises(InputError, match=r"pairs-00001.npz.*it is of another evaluation than its folder: theirs"):
        read_pairs(find_pairs(str(tmp_path / "ours")), split, "abc")
