"""Everything about an examination that can be checked before anything is started or written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from distsens.attacks import Norm
from distsens.data import SEVERITIES, Dataset, ImageSet, corrupt, representatives, to_pixels
from distsens.distributed.cluster import check_cluster, job_submission_id
from distsens.distributed.preflight import data_notices, storage_url, tracking_places
from distsens.errors import InputError, refusing, renamed
from distsens.evaluation import (
    Judgement,
    Pool,
    Subject,
    absolute_address,
    find_subject,
    has_gradients,
    inspect,
    is_weights_file,
    split_factory,
)
from distsens.examination import Examination
from distsens.experiment import Experiment
from distsens.models import normalisation_of, state_of
from distsens.sensitivity import neuron_counts
from distsens.storage import Place, check_room, open_place
from distsens.strict_json import Document, load_as, load_json_file
from distsens.suite import (
    Materials,
    attack_settings,
    build_judgement,
    chosen_numbers,
    families,
    judged_split,
    load_judged,
)
from distsens.tracking import check_tracking

_INSPECTED = 64
_CLASSES_NAMED = 5
_WITHOUT_GRADIENTS = ("square", "transfer")
_OF_THE_MODEL = {name: f"model.{name}" for name in ("mean", "std", "small_images")}
_OF_EXAMPLES = {"storage.path": "examples"}


@dataclass(frozen=True)
class CheckedExamination:
    """What the check found: the model, the images, and where things will be kept.

    examination : with nothing left out any more. split : of the data set's, what ``data.limit`` leaves.
    baseline : error rates that mCE is relative to.
    attacks : their settings by name, see `attack_settings`. warnings : what the verdicts are to be read with.
    """

    examination: Examination
    subject: Subject
    source: Subject | None
    dataset: Dataset
    split: ImageSet
    storage: Place
    tracking_uri: str
    artifact_root: str | None
    baseline: dict[str, list[float]] | None
    attacks: dict[str, dict[str, Any]]
    warnings: tuple[str, ...]

    @property
    def rows(self) -> Sequence[int]:
        """Of the images that are judged, within ``split``."""
        return self.examination.data.images or range(len(self.split))

    @cached_property
    def numbers(self) -> npt.NDArray[np.int64]:
        """Of the images in ``split``, within the whole split: ascending."""
        return chosen_numbers(self.examination.data, self._whole_split.labels)

    @property
    def labels(self) -> dict[int, int]:
        """Of the images that are judged, by their numbers."""
        return {int(self.numbers[row]): int(self.split.labels[row]) for row in self.rows}

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 of the images and labels of the whole split, of which a part may be judged alone."""
        return self._whole_split.digest()

    @property
    def _whole_split(self) -> ImageSet:
        split: ImageSet = getattr(self.dataset, self.examination.data.split)
        return split


def check_examination(examination: Examination, tell: Callable[[str], None] = lambda _: None) -> CheckedExamination:
    """Check model, data, threat, attacks, storage, tracking and this machine's resources; writes nothing."""
    check_cluster(examination.workers, tell=tell)
    places = Experiment(storage=examination.storage, tracking=examination.tracking)
    storage = open_place(storage_url(places))
    uri, artifacts = tracking_places(places, storage)
    model = examination.model
    with renamed(_OF_THE_MODEL):
        subject = find_subject(
            model.address,
            factory=model.factory,
            mean=model.mean,
            std=model.std,
            small_images=model.small_images,
            tracking_uri=uri,
        )
    examination = examination.completed(subject.experiment)
    if ("transfer" in examination.attacks) != (examination.transfer is not None):
        raise InputError("transfer", examination.transfer, "names a model if, and only if, transfer is an attack")
    source = _source(examination, subject, uri)
    transfer, examination = examination.transfer, _placed(examination)
    dataset, split = load_judged(examination, subject.experiment, tell)
    judged = judged_split(examination.data.split, dataset)
    instead = () if judged == examination.data.split else (f"there is no test split: the {judged} images are judged",)
    examination = examination.model_copy(update={"data": examination.data.model_copy(update={"split": judged})})
    _check_radii(examination, dataset.shape)
    classes = len(dataset.classes)
    with renamed(_OF_THE_MODEL):
        network = subject.build(dataset.shape, classes)
    with _of_the_source(transfer):
        other = None if source is None else source.build(dataset.shape, classes)
    images, labels = split.tensors()
    some = torch.from_numpy(representatives(split.labels, _INSPECTED))
    pixels = to_pixels(images[some])
    materials = Materials(classes, subject.experiment, Pool(pixels, labels[some]), other)
    judgement = build_judgement(examination, materials)
    warnings = [*instead, *data_notices(dataset), *_classes_left_out(examination, dataset, labels)]
    with refusing("model", model.address, f"it cannot be judged on {len(some)} images, or on one"):
        warnings += inspect(network, pixels, labels[some], classes)
        _check_gradients(judgement, examination, network, pixels, labels[some])
        if "adaptive" in judgement.attacks:
            _check_layers(network, subject, dataset.shape)
    if other is not None:
        with refusing("transfer", examination.transfer, f"no examples can be made on it for {len(some)} images"):
            _check_source(other, examination.transfer, pixels, labels[some])
    for family in families(examination.corruptions):
        corrupt(images[slice(0, 1)], family, SEVERITIES[0], torch.zeros(1, dtype=torch.int64))
    check_room(storage)
    storage.check_writable()
    if examination.examples is not None:
        with renamed(_OF_EXAMPLES):
            open_place(examination.examples).check_writable()
    check_tracking(uri, experiment=examination.tracking.experiment, artifact_root=artifacts)
    return CheckedExamination(
        examination,
        subject,
        source,
        dataset,
        split,
        storage,
        uri,
        artifacts,
        _baseline(examination),
        {name: attack_settings(attack) for name, attack in judgement.attacks.items()},
        (*subject.notices, *warnings),
    )


def _placed(examination: Examination) -> Examination:
    """The same with places from the root on: whoever resumes it, and every actor, is to find the same."""
    examples = examination.examples
    if examples is not None:
        if job_submission_id() is not None and "://" not in examples and not Path(examples).expanduser().is_absolute():
            allowed = "a submitted job's folder is deleted after it: name one from the root on, or s3://bucket/prefix"
            raise InputError("examples", examples, allowed)
        with renamed(_OF_EXAMPLES):
            examples = open_place(examples).url
    transfer = None if examination.transfer is None else absolute_address(examination.transfer)
    model = examination.model.model_copy(update={"address": absolute_address(examination.model.address)})
    return examination.model_copy(update={"model": model, "transfer": transfer, "examples": examples})


def _source(examination: Examination, judged: Subject, tracking_uri: str) -> Subject | None:
    """The model that transferred examples are made on.

    A file of weights that names no factory is of the judged model's architecture, and normalised as that is unless it
    says itself how; one of another architecture is normalised as was said of files.
    """
    address, model, own = examination.transfer, examination.model, judged.architecture
    if address is None:
        return None
    with _of_the_source(address):
        if not is_weights_file(address):
            return find_subject(address, tracking_uri=tracking_uri)
        if split_factory(address)[1] is not None:
            return find_subject(address, mean=model.mean, std=model.std, small_images=model.small_images)
        source = find_subject(address, factory=own.name, small_images=own.small_images)
    whole = normalisation_of(state_of(source.weights, address)) is not None
    return source if whole else replace(source, architecture=own)


@contextmanager
def _of_the_source(address: str | None) -> Iterator[None]:
    """What is refused of the model that examples are made on is refused of ``transfer``."""
    try:
        yield
    except InputError as error:
        if error.field == "tracking.uri":
            raise
        what = "" if error.field == "model" else f"{error.field} {error.value!r}: "
        raise InputError("transfer", address, f"{what}{error.allowed}") from error


class _Baseline(Document):
    """What another evaluation's summary is read for."""

    corruption_errors: dict[str, list[float]]


def _baseline(examination: Examination) -> dict[str, list[float]] | None:
    """Corruption error rates of the evaluation whose summary is the baseline."""
    path = examination.baseline
    if path is None:
        return None
    try:
        rates = load_as(_Baseline, load_json_file(path)).corruption_errors
    except (OSError, ValueError) as error:
        raise InputError("baseline", str(path), f"must be the summary of an evaluation: {error}") from None
    wanted = families(examination.corruptions)
    if missing := [family for family in wanted if family not in rates] or (not wanted and ["all"]):
        raise InputError("baseline", str(path), f"has no errors, or none are measured, under {', '.join(missing)}")
    for family in wanted:
        errors = rates[family]
        if len(errors) != len(SEVERITIES) or not all(0.0 <= error <= 1.0 for error in errors) or not any(errors):
            allowed = (
                f"needs {len(SEVERITIES)} error rates in [0, 1], not all of them 0, under {family}; it has {errors}"
            )
            raise InputError("baseline", str(path), allowed)
    return {family: rates[family] for family in wanted}


def _classes_left_out(examination: Examination, dataset: Dataset, labels: Tensor) -> list[str]:
    """The first images are of few classes where folders and files have them class by class."""
    without = [name for number, name in enumerate(dataset.classes) if not bool((labels == number).any())]
    if examination.data.limit is None or not without:
        return []
    some = ", ".join(without[:_CLASSES_NAMED]) + (", ..." if len(without) > _CLASSES_NAMED else "")
    first = "the first " if examination.data.choice == "first" else ""
    return [f"data.limit takes {first}{len(labels)} images, which leave out {len(without)} classes: {some}"]


def _check_gradients(
    judgement: Judgement, examination: Examination, network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    """Refuse attacks along gradients where there is none: a forward that leaves torch cuts it off."""
    need = [name for name in judgement.attacks if name not in _WITHOUT_GRADIENTS]
    need += ["diagnostics"] * examination.diagnostics + ["eps_curve"] * bool(examination.eps_curve)
    if need and not has_gradients(network, images[:1], labels[:1]):
        allowed = f"the model cuts gradients off (detached, or through NumPy): take {' or '.join(_WITHOUT_GRADIENTS)}"
        raise InputError("attacks", need[0], allowed)


def _check_source(network: nn.Module, address: str | None, images: Tensor, labels: Tensor) -> None:
    """Refuse a source of transferred examples that returns no logits, or leads no gradient back to the images."""
    try:
        gradients = has_gradients(network, images, labels)
    except InputError as error:
        raise InputError("transfer", error.value, error.allowed) from None
    if not gradients:
        raise InputError("transfer", address, "it cuts gradients off (detached, or through NumPy)")


def _check_layers(network: nn.Module, subject: Subject, shape: tuple[int, int, int]) -> None:
    layers = ("auto",) if subject.experiment is None else subject.experiment.stabilize.layers
    try:
        neuron_counts(network, layers, torch.zeros(1, *shape))
    except InputError as error:
        raise InputError("attacks", "adaptive", f"of its layers {error.value!r}: {error.allowed}") from None


def _check_radii(examination: Examination, shape: tuple[int, int, int]) -> None:
    norm = examination.threat.norm or "linf"
    for field, eps in (("threat.eps", examination.threat.eps), *(("eps_curve", eps) for eps in examination.eps_curve)):
        if eps is not None:
            check_radius(field, eps, norm, shape)


def check_radius(field: str, eps: float, norm: Norm, shape: tuple[int, int, int]) -> None:
    """Refuse a radius that is none, or larger than the widest distance between two images of the shape."""
    widest = {"linf": 1.0, "l2": math.sqrt(math.prod(shape)), "l1": float(math.prod(shape))}[norm]
    if not 0.0 < eps <= widest:
        raise InputError(field, eps, f"above 0 and at most {widest:.4g}: two images are no further apart in {norm}")


def pool(dataset: Dataset, judged: str, size: int = 256) -> ImageSet:
    """Images, stratified, of which the adaptive attack learns the model, and of which none is judged.

    They are of the validation split, and where ``judged`` names that, of the training split; none where it is empty.
    """
    beside = dataset.train if judged == "validation" else dataset.validation
    return beside.take(representatives(beside.labels, size))
