"""Training on a tree of JPEG files in a bucket, decoded as it is needed: the same whoever reads, and after a kill."""

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

from distsens.storage import Checkpoints, open_place

pytestmark = pytest.mark.ray

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


def weights(storage: str, epoch: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(Checkpoints(open_place(storage)).load(epoch).files["model.safetensors"])


def test_a_tree_in_a_bucket_trains_the_same_kept_in_memory_or_decoded_as_needed_and_after_a_kill(
    make_job: Callable[..., Any], bucket: str, moto: dict[str, str]
) -> None:
    job = make_job()
    job.environment = {**job.environment, **moto}
    arguments = (
        *("--recipe", "quickstart", "--data.name", "folder", "--data.root", bucket, "--workers.num", "1"),
        *("--data.test_fraction", "0.25", "--data.validation_fraction", "0.25", "--data.augment", "flip"),
        *("--training.epochs", "3", "--training.batch_size", "8", "--attack.steps", "1", "--validation.steps", "2"),
        *("--test.steps", "1", "--test.restarts", "1", "--threat.eps", "2/255"),
    )
    kept = job.finish(*arguments)
    killed = job.start(*arguments, "--data.memory", "0")
    killed.wait_for("epoch   1")
    killed.popen.send_signal(signal.SIGKILL)
    killed.end()
    decoded = job.finish("--resume", killed.run)
    assert decoded["experiment"]["data"]["memory"] == 0
    assert any(line.startswith("resumed after epoch") for line in job.processes[-1].lines)
    mine, others = weights(decoded["storage"], 3), weights(kept["storage"], 3)
    assert set(mine) == set(others)
    assert all(torch.equal(value, others[name]) for name, value in mine.items())
