"""Everything about an analysis that can be checked before anything is started or written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from distsens.analysis import Analysis, SavedPairs, build_plan, intervened_layers, read_pairs
from distsens.attacks import Threat
from distsens.data import ImageSet
from distsens.distributed.examination_preflight import CheckedExamination, check_examination
from distsens.errors import InputError
from distsens.evaluation import Subject
from distsens.sensitivity import neuron_counts
from distsens.storage import Place, open_place
from distsens.suite import build_threat


@dataclass(frozen=True)
class CheckedAnalysis:
    """What the check found.

    analysis : with nothing left out any more.
    names : what the models are called, each another. layers : of each model, neurons by layer.
    intervened : of each model, the layers that are intervened on.
    split : the images that are analysed, those of the pairs if pairs are given.
    """

    analysis: Analysis
    examinations: tuple[CheckedExamination, ...]
    names: tuple[str, ...]
    layers: tuple[dict[str, int], ...]
    intervened: tuple[tuple[str, ...], ...]
    threat: Threat
    split: ImageSet
    pairs: SavedPairs | None
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
    if len(set(analysis.addresses)) < len(analysis.addresses):
        raise InputError("model", list(analysis.addresses), "each model once")
    if analysis.names and len(analysis.names) != len(analysis.addresses):
        raise InputError("names", list(analysis.names), f"one for each of {len(analysis.addresses)} models, or none")
    if len(set(analysis.names)) < len(analysis.names):
        raise InputError("names", list(analysis.names), "each name once")
    for field, values in (("ablation.ratios", analysis.ablation.ratios), ("eps", analysis.eps)):
        for value in values:
            if not (0.0 < value <= 1.0 or (field == "eps" and value > 0.0)):
                raise InputError(field, value, "it must be above 0" + ("" if field == "eps" else " and at most 1"))
    if analysis.pairs is not None and len(analysis.addresses) > 1:
        raise InputError("pairs", analysis.pairs, "saved pairs are adversarial for one model: name only that one")
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
    pairs = None if analysis.pairs is None else read_pairs(analysis.pairs, first.split, first.subject.sha256)
    layers, intervened = [], []
    for one in examinations:
        network = one.subject.build(one.dataset.shape, len(one.dataset.classes))
        build_plan(analysis, threat, network, len(one.dataset.classes))
        layers.append(neuron_counts(network, analysis.layers, torch.zeros(1, *one.dataset.shape)))
        intervened.append(intervened_layers(analysis, network))
    if analysis.output is not None:
        open_place(analysis.output).check_writable()
    return CheckedAnalysis(
        analysis,
        tuple(examinations),
        analysis.names or _names(examinations),
        tuple(layers),
        tuple(intervened),
        threat,
        first.split if pairs is None else first.split.take(np.asarray(pairs.numbers)),
        pairs,
        tuple(dict.fromkeys(warning for one in examinations for warning in one.warnings)),
    )


def _names(examinations: list[CheckedExamination]) -> tuple[str, ...]:
    """The runs' names without the moment of their begin where that keeps them apart, else the ends of addresses."""
    short = tuple(re.sub(r"-\d{8}-\d{6}-[0-9a-f]{4}$", "", one.subject.name) for one in examinations)
    if len(set(short)) == len(short):
        return short
    long = tuple(one.subject.address.rstrip("/").rpartition("/")[2] for one in examinations)
    return long if len(set(long)) == len(long) else tuple(one.subject.address for one in examinations)
