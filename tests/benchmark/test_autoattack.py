"""Which images AutoAttack and its reference are compared on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distsens import assembly
from distsens.benchmark import Judged, Subject
from distsens.data import Source, load, representatives
from distsens.errors import InputError
from distsens.experiment import Experiment
from distsens.storage import open_place, published
from distsens.training import WEIGHTS, weights_to_bytes

CPU = torch.device("cpu")


def test_a_briefly_trained_network_is_judged_on_images_it_was_not_trained_on(subject: Subject) -> None:
    judged = Judged.of(subject, 200)
    test = load("digits", Source(None), validation_fraction=0.1, seed=0).test
    whole = np.bincount(test.labels) * 200 / len(test)
    assert np.bincount(judged.labels.numpy(), minlength=10) == pytest.approx(whole, abs=6)
    assert torch.equal(judged.images, (255.0 * subject.test_images[:200]).round().to(torch.uint8))
    with pytest.raises(InputError, match="images: got 1000; the subject has 256 test images"):
        Judged.of(subject, 1000)


def test_a_run_is_judged_on_its_test_images_wherever_they_lie_now(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(40, 8, 8)).astype(np.uint8)
    labels = np.arange(40) % 4
    moved = tmp_path / "moved.npz"
    np.savez(moved, train_images=images, train_labels=labels, test_images=images[:12], test_labels=labels[:12])
    experiment = Experiment.parse(
        {
            "data": {"name": "npz", "root": "/gone.npz", "validation_fraction": 0.2},
            "model": {"name": "lenet5"},
            "threat": {"norm": "l2", "eps": 0.5},
        }
    )
    files = {
        WEIGHTS: weights_to_bytes(assembly.build_model(experiment, (1, 8, 8), 4)),
        "experiment.yaml": experiment.to_yaml().encode(),
    }
    published.publish(open_place(str(tmp_path)), "run", files, epoch=1, experiment=experiment.digest(), metrics={})
    address = str(tmp_path / "models" / "run")
    judged = Judged.at(address, 10, CPU, moved)
    numbers = representatives(labels[:12].astype(np.int64), 10)
    assert torch.equal(judged.images[:, 0], torch.from_numpy(images[numbers]))
    assert (judged.threat.norm, judged.threat.eps, len(judged.labels)) == ("l2", 0.5, 10)
    with pytest.raises(InputError, match="images: got 13; npz has 12 test images"):
        Judged.at(address, 13, CPU, moved)
    with pytest.raises(InputError, match=r"data.root: got '/gone.npz'"):
        Judged.at(address, 10, CPU)
