"""Ray Data decodes the batches that are asked for, in their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from distsens.data import ImageFiles, LocalTree, read_ahead
from distsens.data.files import Fit, decode, image_digest
from distsens.distributed.streaming import stream
from distsens.errors import InputError

pytestmark = pytest.mark.ray

COUNT = 24


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    random = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(COUNT)]
    for name in names:
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / name)
    digests = np.stack([image_digest(decode((tmp_path / name).read_bytes())) for name in names])
    return ImageFiles(LocalTree(tmp_path), np.array(names), (8, 8), Fit(), digests)


def in_a_worker(files: ImageFiles, order: list[int], size: int) -> list[torch.Tensor]:
    """Batches streamed to a worker that holds one of the cluster's two cores."""
    batches = list(torch.tensor(order).reshape(-1, size))
    shared = [ray.put(files)]  # in a list, or Ray would hand over what it refers to
    worker = ray.remote(num_cpus=1)(lambda shared: list(stream(files, batches, shared=shared[0], tasks=2)))
    found: list[torch.Tensor] = ray.get(worker.remote(shared), timeout=120)
    return found


def test_batches_are_those_that_were_asked_for_in_their_order(local_ray: None, files: ImageFiles) -> None:
    order = np.random.default_rng(1).permutation(COUNT).tolist()
    whole = in_a_worker(files, order, 6)
    assert [len(batch) for batch in whole] == [6] * 4
    expected = read_ahead(files, list(torch.tensor(order).reshape(-1, 6)))
    assert all(torch.equal(one, other) for one, other in zip(whole, expected, strict=True))
    # What two workers of a training would get of the same global batches, and a resumed one of those that are left.
    halves = [
        in_a_worker(files, [row for at in range(0, COUNT, 6) for row in order[at + s : at + s + 3]], 3) for s in (0, 3)
    ]
    assert torch.equal(torch.cat([torch.cat(pair) for pair in zip(*halves, strict=True)]), torch.cat(whole))
    assert torch.equal(torch.cat(in_a_worker(files, order[12:], 6)), torch.cat(whole[2:]))


def test_a_file_that_is_gone_stops_with_its_name(local_ray: None, files: ImageFiles) -> None:
    (Path(files.tree.url) / "5.png").unlink()
    with pytest.raises(InputError, match=r"5\.png.*could be read when the run began"):
        in_a_worker(files, list(range(COUNT)), 6)


def test_images_in_memory_are_not_streamed() -> None:
    images = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1)
    found = list(stream(images, [torch.tensor([3, 1]), torch.tensor([0, 5])], shared=ray.ObjectRef.nil(), tasks=1))
    assert [batch.flatten().tolist() for batch in found] == [[3, 1], [0, 5]]
