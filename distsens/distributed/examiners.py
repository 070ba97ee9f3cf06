"""Actors that judge shards of images; what they find does not depend on how many they are, or which of them died."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch

from distsens.data import ImageFiles, Images, ImageSet, as_tensor, representatives, to_pixels
from distsens.distributed.logs import logged, worker_log
from distsens.distributed.pool import ActorPool
from distsens.evaluation import Check, Examined, Ledger, Pool, Subject, examine, masking_checks
from distsens.examination import Examination
from distsens.storage import open_place
from distsens.suite import Materials, build_attacks, build_judgement, build_probe_attack

_DIAGNOSED = 200
_DIAGNOSIS = -1  # beside the numbers of shards


@dataclass(frozen=True)
class Assignment:
    """What every examiner is told.

    name : of the evaluation, and of the folder that wanted examples go to.
    numbers : within the whole split, of the images in the judged one.
    images, labels : object references of the judged split, read from the same shared memory by a node's examiners.
    pool_images, pool_labels : the same of the images that the adaptive attack learns the model on.
    source : the model that transferred examples are made on.
    """

    name: str
    examination: Examination
    subject: Subject
    source: Subject | None
    shape: tuple[int, int, int]
    classes: int
    numbers: npt.NDArray[np.int64]
    images: ray.ObjectRef
    labels: ray.ObjectRef
    pool_images: ray.ObjectRef
    pool_labels: ray.ObjectRef


class Examiner:
    """Judges one shard after another; lives in an actor.

    It is told its assignment with each shard, not when it is made, so that one that Ray starts anew is as good.
    """

    def __init__(self, run: str, rank: int) -> None:
        self._log = worker_log(run, rank)
        self._desk: _Desk | None = None

    def examine(self, assignment: Assignment, rows: Sequence[int]) -> tuple[bytes, bytes | None]:
        """Judge these images of the judged split; their ledger as Parquet, and the examples as npz if wanted."""
        with logged(self._log, "judging", first_image=rows[0], images=len(rows)):
            return self._at(assignment).examine(rows)

    def diagnose(self, assignment: Assignment) -> list[Check]:
        """Look for gradient masking on some images, stratified."""
        with logged(self._log, "diagnosing"):
            return self._at(assignment).diagnose()

    def _at(self, assignment: Assignment) -> _Desk:
        if self._desk is None:
            self._desk = _Desk(assignment)
        return self._desk


class _Desk:
    """An assignment with everything built that it takes."""

    def __init__(self, assignment: Assignment) -> None:
        self._examination, self._name = assignment.examination, assignment.name
        torch.set_num_threads(self._examination.workers.cpus)  # Ray's OMP_NUM_THREADS yields to one that is set
        # Ray gives actors their GPUs by the devices that they see.
        self._device = torch.device("cuda" if torch.cuda.is_available() and self._examination.workers.gpus else "cpu")
        shape, classes = assignment.shape, assignment.classes
        self._model = assignment.subject.build(shape, classes).to(self._device)
        source = assignment.source
        self._numbers = torch.from_numpy(assignment.numbers.copy())  # what Ray holds is read-only
        self._images, self._labels = read_split(assignment.images, assignment.labels)
        pool_images, pool_labels = read_split(assignment.pool_images, assignment.pool_labels)
        self._materials = Materials(
            classes,
            assignment.subject.experiment,
            Pool(to_pixels(pool_images[slice(None)].to(self._device)), pool_labels.to(self._device))
            if len(pool_labels)
            else None,
            None if source is None else source.build(shape, classes).to(self._device),
        )
        self._judgement = build_judgement(self._examination, self._materials)

    def examine(self, rows: Sequence[int]) -> tuple[bytes, bytes | None]:
        """Judge these images of the judged split; their ledger as Parquet, and the examples as npz if wanted."""
        where = torch.tensor(rows)
        images, labels, numbers = self._images[where], self._labels[where], self._numbers[where]
        examined = examine(self._model, images, labels, numbers, self._judgement, self._device)
        wanted = self._examination.examples is not None
        return examined.ledger.to_parquet(), _pairs(images, examined, self._name) if wanted else None

    def diagnose(self) -> list[Check]:
        """Look for gradient masking on some images, stratified."""
        rows = torch.from_numpy(representatives(self._labels.numpy(), _DIAGNOSED))
        square = build_attacks(self._examination.model_copy(update={"attacks": ("square",)}), self._materials)
        return masking_checks(
            self._model,
            to_pixels(self._images[rows].to(self._device)),
            self._labels[rows].to(self._device),
            build_probe_attack(self._examination),
            gradient_free=square["square"],
            seed=self._examination.seed,
        )


def share_split(split: ImageSet) -> tuple[ray.ObjectRef, ray.ObjectRef]:
    """Object references of a split's images and labels."""
    images = split.images if isinstance(split.images, ImageFiles) else np.ascontiguousarray(split.images)
    return ray.put(images), ray.put(np.ascontiguousarray(split.labels))


def read_split(images: ray.ObjectRef, labels: ray.ObjectRef) -> tuple[Images, torch.Tensor]:
    """Images and labels behind the references of :func:`share_split`; a node's actors read the same memory."""
    found = ray.get(images)
    return (found if isinstance(found, ImageFiles) else as_tensor(found)), as_tensor(ray.get(labels))


def _pairs(images: torch.Tensor, examined: Examined, evaluation: str) -> bytes:
    """An npz of ``images`` (uint8), ``adversarial`` (float32 in [0, 1]), ``labels``, predictions and ``image``.

    It says of which evaluation it is, lest a file of another is taken for one of this.
    """
    rows = examined.ledger.rows
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=images.numpy(),
        adversarial=examined.adversarial.numpy(),
        labels=rows["label"].to_numpy(np.int64),
        prediction=rows["prediction"].to_numpy(np.int64),
        adversarial_prediction=rows["adversarial_prediction"].fillna(rows["prediction"]).to_numpy(np.int64),
        image=rows["image"].to_numpy(np.int64),
        evaluation=np.array(evaluation),
    )
    return buffer.getvalue()


class Examiners:
    """A pool of examiners; ``say`` shows a line."""

    def __init__(self, assignment: Assignment, say: Callable[[str], None]) -> None:
        self._assignment = ray.put(assignment)
        self._folder = assignment.name
        examples = assignment.examination.examples
        self._examples = None if examples is None else open_place(examples)
        self._pool: ActorPool[int] = ActorPool(Examiner, assignment.examination.workers, assignment.name, say)

    def close(self) -> None:
        """End them, and free their places."""
        self._pool.close()

    def examine(
        self, shards: Mapping[int, Sequence[int]], seconds: float, *, diagnose: bool = False
    ) -> Iterator[tuple[int, Ledger] | list[Check] | None]:
        """Each shard's number and ledger as it is done, and None when for some seconds nothing was.

        Wanted examples are stored first, and from here: a folder of the user's is one on this machine.
        With ``diagnose`` also what the diagnostics find, which one of them makes first.
        """

        def task(images: Sequence[int]) -> Callable[[Any], Any]:
            return lambda examiner: examiner.examine.remote(self._assignment, list(images))

        tasks = {number: task(shards[number]) for number in sorted(shards)}
        if diagnose:
            tasks = {_DIAGNOSIS: lambda examiner: examiner.diagnose.remote(self._assignment), **tasks}
        for done in self._pool.run(tasks, seconds):
            if done is None or done[0] == _DIAGNOSIS:
                yield done and done[1]
            else:
                number, (ledger, pairs) = done
                if self._examples is not None and pairs is not None:
                    self._examples.put(f"{self._folder}/pairs-{number:05d}.npz", pairs)
                yield number, Ledger.from_parquet(ledger)
