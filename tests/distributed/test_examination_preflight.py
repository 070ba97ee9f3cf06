"""What an examination is completed with before anything starts: the model that transfers, and places from the root."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from distsens.data import Dataset, ImageSet
from distsens.distributed.examination_preflight import _placed, _source, pool
from distsens.errors import InputError
from distsens.evaluation import Architecture, Subject, find_subject
from distsens.examination import Examination
from distsens.models import build, state_to_bytes

JUDGED = Subject("net", "net.pt", Architecture("lenet5", (0.25,), (0.5,)), b"")


def transfer(address: Path) -> Examination:
    return Examination.parse({"attacks": ["transfer"], "transfer": str(address)})


def test_examples_come_from_a_network_that_is_normalised_as_the_judged_one(tmp_path: Path) -> None:
    network = build("lenet5", shape=(1, 8, 8), classes=10, mean=(0.0,), std=(1.0,), seed=0).network
    safetensors.torch.save_file(network.state_dict(), tmp_path / "bare.safetensors")
    source = _source(transfer(tmp_path / "bare.safetensors"), JUDGED, "")
    assert source is not None
    assert source.architecture == JUDGED.architecture
    model = source.build((1, 8, 8), 10)
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(model(images), network.eval()((images - 0.25) / 0.5))


def test_examples_come_from_a_file_that_says_itself_how_it_is_normalised(tmp_path: Path) -> None:
    whole = build("lenet5", shape=(1, 8, 8), classes=10, mean=(0.1,), std=(0.9,), seed=0)
    (tmp_path / "whole.safetensors").write_bytes(state_to_bytes(whole.state_dict()))
    source = _source(transfer(tmp_path / "whole.safetensors"), JUDGED, "")
    assert source is not None
    assert source.architecture.mean == pytest.approx((0.1,))
    source.build((1, 8, 8), 10)


def test_places_are_the_same_for_whoever_is_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"model": {"address": "runs/r#best"}, "transfer": "net.pt", "examples": "pairs"}
    placed = _placed(Examination.parse(given))
    assert placed.model.address == str(tmp_path / "runs" / "r#best")
    assert placed.transfer == str(tmp_path / "net.pt")
    assert placed.examples == (tmp_path / "pairs").as_uri()
    monkeypatch.chdir("/")
    assert _placed(placed) == placed
    far = Examination.parse({"model": {"address": "models:/m@champion"}, "transfer": "s3://bucket/runs/r"})
    assert _placed(far) == far
    with pytest.raises(InputError, match="model: got 'nowhere'"):
        find_subject("nowhere")  # what cannot be found is called as it was written


def test_a_submitted_job_saves_no_examples_in_the_folder_that_is_deleted_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    with pytest.raises(InputError, match=r"examples: got 'pairs'; a submitted job's folder is deleted after it"):
        _placed(Examination.parse({"examples": "pairs"}))
    assert _placed(Examination.parse({"examples": "s3://bucket/pairs"})).examples == "s3://bucket/pairs"


def test_the_adaptive_attacks_pool_is_of_every_class_and_never_of_the_images_that_are_judged() -> None:
    def of(first: int, count: int) -> ImageSet:
        images = np.arange(first, first + count, dtype=np.uint32).view(np.uint8).reshape(count, 1, 2, 2)
        return ImageSet(images, np.repeat(np.arange(4), count // 4).astype(np.int64))

    dataset = Dataset("sorted", tuple("abcd"), of(0, 800), of(1000, 400), of(2000, 400))
    for judged, beside in (("test", dataset.validation), ("train", dataset.validation), ("validation", dataset.train)):
        some = pool(dataset, judged)
        assert np.bincount(some.labels).tolist() == [64] * 4
        assert {image.tobytes() for image in np.asarray(some.images)} <= {
            image.tobytes() for image in np.asarray(beside.images)
        }
    assert len(pool(Dataset("few", tuple("abcd"), of(0, 4), of(8, 4), of(12, 4)), "test")) == 4
