"""Everything about an analysis that can be checked before anything is started or written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distsens.analysis import (
    Analysis,
    History,
    SavedPairs,
    build_plan,
    find_pairs,
    intervened_layers,
    read_pairs,
    training_history,
)
from distsens.attacks import Threat
from distsens.data import ImageSet
from distsens.distributed.examination_preflight import CheckedExamination, check_examination, check_radius
from distsens.errors import InputError, refusing, renamed
from distsens.evaluation import Subject
from distsens.examination import JudgedData, JudgedThreat
from distsens.sensitivity import neuron_counts
from distsens.storage import Place, open_place
from distsens.suite import build_threat

_LONGEST_NAME = 100


@dataclass(frozen=True)
class CheckedAnalysis:
    """What the check found.

    analysis : with nothing left out any more.
    names : what the models are called, each another. layers : of each model, neurons by layer.
    intervened : of each model, the layers that are intervened on.
    split : the images that are analysed, those of the pairs if pairs are given. numbers : of them in the whole split.
    histories : of each model, what its training wrote down of its neurons.
    """

    analysis: Analysis
    examinations: tuple[CheckedExamination, ...]
    names: tuple[str, ...]
    layers: tuple[dict[str, int], ...]
    intervened: tuple[tuple[str, ...], ...]
    threat: Threat
    split: ImageSet
    numbers: npt.NDArray[np.int64]
    pairs: SavedPairs | None
    histories: tuple[History | None, ...]
    warnings: tuple[str, ...]

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """The models."""
        return tuple(one.subject for one in self.examinations)

    @property
    def storage(self) -> Place:
        """Where the analysis is kept."""
        return self.examinations[0].storage


def check_analysis(analysis: Analysis, tell: Callable[[str], None] = lambda _: None) -> CheckedAnalysis:
    """Check models, data, attacks, layers, pairs, storage, tracking and this machine's resources; writes nothing."""
    _check_words(analysis)
    folder = None if analysis.pairs is None else find_pairs(analysis.pairs)
    if folder is not None and folder.threat is not None:
        analysis = analysis.model_copy(update={"threat": _threat_of_pairs(analysis, folder.threat)})
    if folder is not None:
        analysis = analysis.model_copy(update={"data": _data_of_pairs(analysis, folder.data)})
    examinations: list[CheckedExamination] = []
    for address in analysis.addresses:
        examinations.append(check_examination(analysis.examination(address), tell))
        if len(examinations) == 1:  # what the first one's training settles holds for all
            analysis = analysis.completed(examinations[0].examination)
    first = examinations[0]
    for one in examinations[1:]:
        if (one.dataset.classes, one.data_digest) != (first.dataset.classes, first.data_digest):
            raise InputError(
                "model", one.subject.address, "its images are others than those of the first model; see data.name"
            )
    threat = build_threat(first.examination)
    for eps in analysis.eps:
        check_radius("eps", eps, threat.norm, first.dataset.shape)
    if repeated := [eps for eps in analysis.eps if f"{eps:.4g}" == f"{threat.eps:.4g}"]:
        raise InputError("eps", repeated[0], "it is that of the threat: leave it out")
    pairs = None if folder is None else read_pairs(folder, first.split, first.subject.sha256, first.numbers)
    layers, intervened = [], []
    for one in examinations:
        network = one.subject.build(one.dataset.shape, len(one.dataset.classes))
        with refusing("model", one.subject.address, "its neurons cannot be measured"):
            example = torch.zeros(1, *one.dataset.shape)
            layers.append(neuron_counts(network, analysis.layers, example))
            build_plan(analysis, threat, tuple(layers[-1]), len(one.dataset.classes))
            intervened.append(intervened_layers(analysis, network, tuple(layers[-1]), example))
    if analysis.output is not None:
        with renamed({"storage.path": "output"}):
            open_place(analysis.output).check_writable()
    subjects = [one.subject for one in examinations]
    histories, faults = read_histories(subjects)
    return CheckedAnalysis(
        analysis,
        tuple(examinations),
        analysis.names or names_of(subjects),
        tuple(layers),
        tuple(intervened),
        threat,
        first.split if pairs is None else first.split.take(pairs.rows),
        first.numbers if pairs is None else pairs.numbers,
        pairs,
        histories,
        tuple(dict.fromkeys([*(warning for one in examinations for warning in one.warnings), *faults])),
    )


def _check_words(analysis: Analysis) -> None:
    """Refuse what no model and no data is needed to see."""
    addresses, names = analysis.addresses, analysis.names
    _once("model", addresses)
    if names and len(names) != len(addresses):
        raise InputError("names", list(names), f"one for each of {len(addresses)} models, or none")
    _once("names", names)
    for name in names:
        if not name.strip(". ") or "/" in name or len(name) > _LONGEST_NAME:
            raise InputError("names", name, f"a word or some, without /, of at most {_LONGEST_NAME} characters")
    _once("attacks", analysis.attacks)
    _once("eps", [f"{eps:.4g}" for eps in analysis.eps])
    for ratio in analysis.ablation.ratios:
        if not 0.0 < ratio <= 1.0:
            raise InputError("ablation.ratios", ratio, "it must be above 0 and at most 1")
    if analysis.data.images:
        raise InputError("data.images", list(analysis.data.images), "leave it out; data.limit takes some of each class")
    if analysis.pairs is not None:
        if len(addresses) > 1:
            raise InputError("pairs", analysis.pairs, "saved pairs are adversarial for one model: name only that one")
        if analysis.attacks != Analysis().attacks:
            raise InputError("attacks", list(analysis.attacks), "leave it out: saved pairs need none")
        if analysis.eps:
            raise InputError("eps", list(analysis.eps), "leave it out: saved pairs are at one radius")


def _once(field: str, values: Sequence[str]) -> None:
    if len(set(values)) < len(values):
        raise InputError(field, list(values), "each one once")


def _threat_of_pairs(analysis: Analysis, threat: Threat) -> JudgedThreat:
    """The ball that saved pairs lie in, which may be said once more, but not otherwise."""
    for name, value in (("norm", threat.norm), ("eps", threat.eps)):
        said = getattr(analysis.threat, name)
        if said is not None and said != value:
            raise InputError(f"threat.{name}", said, f"the pairs were made for {threat.norm} with eps {threat.eps:g}")
    return JudgedThreat(norm=threat.norm, eps=threat.eps)


def _data_of_pairs(analysis: Analysis, data: Mapping[str, Any]) -> JudgedData:
    """The images that saved pairs are of, which may be said once more, but not otherwise; and where they were."""
    said = analysis.data
    for name, default in (("name", None), ("split", JudgedData().split)):
        stored = data.get(name)
        if stored is not None and getattr(said, name) not in (default, stored):
            raise InputError(f"data.{name}", getattr(said, name), f"the pairs are of {stored}")
    left_out = {name: value for name, value in data.items() if name == "split" or getattr(said, name) is None}
    return said.model_copy(update=left_out)


def read_histories(subjects: Sequence[Subject]) -> tuple[tuple[History | None, ...], list[str]]:
    """What each training wrote down of its neurons; one that cannot be read is missed, and said."""
    found: list[History | None] = []
    faults = []
    for subject in subjects:
        try:
            found.append(training_history(subject))
        except (OSError, ValueError, KeyError) as error:
            found.append(None)
            reason = " ".join(str(error).split())
            faults.append(f"what the training of {subject.name} wrote down of its neurons is unreadable: {reason}")
    return tuple(found), faults


def names_of(subjects: Sequence[Subject]) -> tuple[str, ...]:
    """The runs' names without the moment of their begin where that keeps them apart, else the ends of addresses."""
    short = [re.sub(r"-\d{8}-\d{6}-[0-9a-f]{4}$", "", one.name) for one in subjects]
    ends = [one.address.rstrip("/").rpartition("/")[2] for one in subjects]
    for candidates in (short, ends, [one.address for one in subjects]):
        words = tuple(re.sub(r"[^\w.]+", "-", name).strip("-.")[-_LONGEST_NAME:] for name in candidates)
        if len(set(words)) == len(words) and all(words):
            return words
    return tuple(f"model {number}" for number in range(1, len(subjects) + 1))
