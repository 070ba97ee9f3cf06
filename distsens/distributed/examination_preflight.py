"""Everything about an examination that can be checked before anything is started or written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from distsens.data import SEVERITIES, Dataset, ImageSet, to_pixels
from distsens.distributed.cluster import check_capacity_here
from distsens.distributed.preflight import storage_url, tracking_places
from distsens.errors import InputError
from distsens.evaluation import Pool, Subject, find_subject, inspect
from distsens.examination import Examination
from distsens.experiment import Experiment
from distsens.models import WEIGHTS_SUFFIXES
from distsens.storage import Place, open_place
from distsens.suite import Materials, attack_settings, build_judgement, families, load_judged
from distsens.tracking import check_tracking

_INSPECTED = 64


@dataclass(frozen=True)
class CheckedExamination:
    """What the check found: the model, the images, and where things will be kept.

    examination : with nothing left out any more. baseline : error rates that mCE is relative to.
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
    def numbers(self) -> Sequence[int]:
        """Of the images that are judged, within the split."""
        return self.examination.data.images or range(len(self.split))

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 of the images and labels of the whole split, of which the first may be judged alone."""
        split: ImageSet = getattr(self.dataset, self.examination.data.split)
        return split.digest()


def check_examination(examination: Examination, tell: Callable[[str], None] = lambda _: None) -> CheckedExamination:
    """Check model, data, threat, attacks, storage, tracking and this machine's resources; writes nothing."""
    check_capacity_here(examination.workers)
    places = Experiment(storage=examination.storage, tracking=examination.tracking)
    storage = open_place(storage_url(places))
    uri, artifacts = tracking_places(places, storage)
    model = examination.model
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
    dataset, split = load_judged(examination, subject.experiment, tell)
    _check_radii(examination, dataset.shape)
    classes = len(dataset.classes)
    network = subject.build(dataset.shape, classes)
    other = None if source is None else source.build(dataset.shape, classes)
    count = min(_INSPECTED, len(split))
    images, labels = split.tensors()
    pixels = to_pixels(images[slice(0, count)])
    materials = Materials(classes, subject.experiment, Pool(pixels, labels[:count]), other)
    judgement = build_judgement(examination, materials)
    warnings = inspect(network, pixels, labels[:count], classes)
    storage.check_writable()
    if examination.examples is not None:
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


def _source(examination: Examination, judged: Subject, tracking_uri: str) -> Subject | None:
    """The model that transferred examples are made on; a file of weights is of the judged model's architecture."""
    address, model = examination.transfer, examination.model
    if address is None:
        return None
    architecture: dict[str, Any] = {}
    if address.endswith(WEIGHTS_SUFFIXES) and not address.startswith(("runs:/", "models:/")):
        architecture = {
            "factory": judged.architecture.name,
            "small_images": judged.architecture.small_images,
            "mean": model.mean,
            "std": model.std,
        }
    try:
        return find_subject(address, tracking_uri=tracking_uri, **architecture)
    except InputError as error:
        raise InputError("transfer" if error.field == "model" else error.field, error.value, error.allowed) from None


def _baseline(examination: Examination) -> dict[str, list[float]] | None:
    """Corruption error rates of the evaluation whose summary is the baseline."""
    path = examination.baseline
    if path is None:
        return None
    try:
        errors = json.loads(path.read_text(encoding="utf-8"))["corruption_errors"]
        rates = {family: [float(error) for error in errors[family]] for family in errors}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("baseline", str(path), f"must be the summary of an evaluation: {error!r}") from None
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


def _check_radii(examination: Examination, shape: tuple[int, int, int]) -> None:
    norm = examination.threat.norm or "linf"
    widest = {"linf": 1.0, "l2": math.sqrt(math.prod(shape)), "l1": float(math.prod(shape))}[norm]
    for field, eps in (("threat.eps", examination.threat.eps), *(("eps_curve", eps) for eps in examination.eps_curve)):
        if eps is not None and not 0.0 < eps <= widest:
            raise InputError(field, eps, f"above 0 and at most {widest:.4g}: two images are no further apart in {norm}")


def pool(dataset: Dataset, size: int = 256) -> ImageSet:
    """Validation images, of which the adaptive attack learns the model; none where nothing was held out."""
    return dataset.validation.take(np.arange(min(size, len(dataset.validation))))
