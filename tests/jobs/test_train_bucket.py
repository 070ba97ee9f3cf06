"""Training on a tree of JPEG files in a bucket: the same whoever decodes it, and after a kill."""

from __future__ import annotations

import itertools
import os
import signal
import tarfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from distsens.assembly import build_model
from distsens.experiment import Experiment
from distsens.storage import Checkpoints, open_place

pytestmark = [pytest.mark.ray, pytest.mark.drill]

ARCHIVE = "cifar10-jpeg/cifar10_jpeg_tree.tar.xz"
PER_CLASS = 24


def jpegs() -> dict[str, bytes]:
    """Some JPEG files of three classes: CIFAR-10's where they are to be had, else made here."""
    archive = Path(os.environ.get("DISTSENS_DATA") or "nowhere") / ARCHIVE
    if not archive.is_file():
        random = np.random.default_rng(0)
        made = {}
        for label, number in itertools.product(range(3), range(PER_CLASS)):
            picture = random.normal(60 + 60 * label, 30, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            buffer = BytesIO()
            Image.fromarray(picture).save(buffer, "jpeg")
            made[f"train/class-{label}/{number}.jpg"] = buffer.getvalue()
        return made
    found: dict[str, list[bytes]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.name.endswith((".jpg", ".jpeg")):
                continue
            own = found.setdefault(Path(member.name).parent.name, [])
            if len(own) < PER_CLASS and (len(found) <= 3):
                file = tar.extractfile(member)
                assert file is not None
                own.append(file.read())
            if len(found) > 3:
                break
    classes = sorted(name for name, some in found.items() if len(some) == PER_CLASS)[:3]
    return {f"train/{name}/{number}.jpg": data for name in classes for number, data in enumerate(found[name])}


@pytest.fixture
def bucket(moto: dict[str, str], use_s3: Callable[[Mapping[str, str]], str]) -> str:
    """URL of the tree in a bucket."""
    url = use_s3(moto)
    client = boto3.session.Session().client("s3")
    for name, data in jpegs().items():
        client.put_object(Bucket=url.removeprefix("s3://"), Key=f"tree/{name}", Body=data)
    return f"{url}/tree"


def decoded_by_ray_data(environment: dict[str, str]) -> int:
    """How often Ray Data has written in its logs that it decodes."""
    logs = Path(environment["RAY_TMPDIR"]).glob("ray/session_*/logs/ray-data/ray-data*.log")
    return sum(log.read_text().count("MapBatches(_decode)") for log in logs)


def weights(storage: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(Checkpoints(open_place(storage)).load(3).files["model.safetensors"])


def test_a_tree_in_a_bucket_trains_the_same_kept_in_memory_or_decoded_by_ray_data_and_after_a_kill(
    job: Any, bucket: str, running: dict[str, str]
) -> None:
    arguments = (
        *("--recipe", "quickstart", "--data.name", "folder", "--data.root", bucket),
        *("--data.test_fraction", "0.25", "--data.validation_fraction", "0.25", "--data.augment", "flip"),
        *("--training.epochs", "3", "--training.batch_size", "8", "--attack.steps", "1", "--validation.steps", "2"),
        *("--test.steps", "1", "--test.restarts", "1", "--threat.eps", "2/255"),
        # Nothing that makes rounding into steps: no signs of gradients, no choice of neurons, no Adam.
        *("--objective.name", "standard", "--stabilize.weight", "0"),
        *("--training.optimizer", "sgd", "--training.lr", "0.1"),
    )
    decoded = ("--data.memory", "0", "--data.decoding_cpus", "1")
    before = decoded_by_ray_data(running)
    kept = job.finish(*arguments, "--workers.num", "1")
    assert decoded_by_ray_data(running) == before
    killed = job.start(*arguments, *decoded, "--workers.num", "1")
    killed.wait_for("epoch   1")
    killed.popen.send_signal(signal.SIGKILL)
    killed.end()
    by_one = decoded_by_ray_data(running)
    assert by_one > before
    resumed = job.finish("--resume", killed.run, "--workers.num", "2")
    assert any(line.startswith("resumed after epoch") for line in job.processes[-1].lines)
    assert decoded_by_ray_data(running) > by_one
    expected, again = weights(kept["storage"]), weights(resumed["storage"])
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-6)
    untrained = build_model(Experiment.parse(kept["experiment"]), (3, 32, 32), 3).state_dict()
    assert all((expected[name] - value).abs().max() > 1e-4 for name, value in untrained.items() if "." in name)


def test_decoding_needs_a_core_that_no_worker_holds(job: Any) -> None:
    refused = job.run("--recipe", "quickstart", "--workers.num", "3", "--data.decoding_cpus", "1")
    assert refused.popen.returncode == 2
    joining, error = refused.lines
    assert joining.startswith("joining the Ray cluster at ")
    assert error == "error: data.decoding_cpus: got 1; the cluster has 0 CPU beside the 3 workers'"
