"""AutoAttack's standard version against the public implementation of its authors' code, on the same images."""

from __future__ import annotations

import contextlib
import io
import warnings
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from distsens.attacks import APGD, FAB, JudgingAttack, Square, Threat
from distsens.benchmark.finding import Finding
from distsens.benchmark.peers import missing_peers
from distsens.benchmark.rounds import Spread, median_seconds, ratios, take_turns
from distsens.benchmark.subject import Subject
from distsens.data import representatives, to_pixels
from distsens.errors import InputError
from distsens.evaluation import Judgement, Pool, examine, find_subject, full_float32
from distsens.examination import Examination
from distsens.logits import predictions
from distsens.suite import Materials, build_attacks, load_judged

_SPEEDUP, _POINTS = 2.0, 0.3
_BATCH = 250
_REFERENCE = "pyautoattack"


@dataclass(frozen=True)
class Effort:
    """How much is judged: images, gradient steps of an attempt, and Square's queries."""

    images: int = 256
    steps: int = 100
    queries: int = 5000


QUICK_EFFORT = Effort(images=16, steps=5, queries=20)


@dataclass(frozen=True)
class Judged:
    """A network, on the device and in eval mode, with uint8 images, labels and the ball to judge it in."""

    title: str
    network: nn.Module
    images: Tensor
    labels: Tensor
    threat: Threat

    @staticmethod
    def of(subject: Subject, images: int) -> Judged:
        """The briefly trained network on test images.

        Raises
        ------
        InputError : the subject has fewer.
        """
        if images > len(subject.test_images):
            raise InputError("images", images, f"the subject has {len(subject.test_images)} test images")
        pixels = (255.0 * subject.test_images[:images]).round().to(torch.uint8)
        threat = Threat("linf", subject.scale.eps)
        return Judged(subject.scale.title, subject.network, pixels, subject.test_labels[:images], threat)

    @staticmethod
    def at(address: str, images: int, device: torch.device, root: str | None = None) -> Judged:
        """A trained run of ours on some test images, stratified, in the ball it was trained for.

        ``root`` is where its data set lies, unless it is where it was in training.

        Raises
        ------
        InputError : there is no such run, its data is not to be found, or has fewer test images.
        """
        subject = find_subject(address)
        if subject.experiment is None:
            raise InputError("model", address, "must be a run of ours: only that says its data and threat")
        examination = Examination.parse({"data": {"root": root}}).completed(subject.experiment)
        dataset, split = load_judged(examination, subject.experiment)
        if images > len(split):
            raise InputError("images", images, f"{dataset.name} has {len(split)} test images")
        network = subject.build(dataset.shape, len(dataset.classes)).to(device).eval()
        threat = examination.threat
        assert threat.norm is not None
        assert threat.eps is not None
        pixels, labels = split.take(representatives(split.labels, images)).tensors()
        return Judged(subject.name, network, pixels[:], labels, Threat(threat.norm, threat.eps))


def measure_autoattack(judged: Judged, rounds: int, effort: Effort, device: torch.device) -> list[Finding]:
    """Seconds of both, in turns, and the robust accuracies that they find.

    Ours is the evaluation's way: the verdict on every example by a plain forward, and the ledger, are included.
    """
    if missing_peers([_REFERENCE]):
        return []
    robust: dict[str, float] = {}
    evaluations: list[int] = []

    def ours(number: int) -> None:
        count = len(judged.images)
        judgement = Judgement(judged.threat, _attacks(judged, effort), seed=number, batch_size=_BATCH)
        examined = examine(judged.network, judged.images, judged.labels, torch.arange(count), judgement, device)
        robust["distsens"] = 100.0 * examined.ledger.robust.value
        evaluations.append(sum(examined.ledger.spent.values()))

    def theirs(number: int) -> None:
        robust[_REFERENCE] = 100.0 * _reference(judged, effort, number, device)

    timings = take_turns({"distsens": ours, _REFERENCE: theirs}, rounds, device, warm_up=False)
    name = "autoattack"
    return [
        Finding(
            f"{name}/speedup",
            f"{judged.title}: AutoAttack on {len(judged.images)} images, times as fast as {_REFERENCE}",
            "x",
            ratios(timings, _REFERENCE, "distsens"),
            target=_SPEEDUP,
            details={
                "cpu": ratios(timings, _REFERENCE, "distsens", cpu=True).median,
                "seconds": median_seconds(timings),
                "evaluations": evaluations[-1],
            },
        ),
        Finding(
            f"{name}/difference",
            "  robust accuracy, away from its",
            "points",
            Spread.of([abs(robust["distsens"] - robust[_REFERENCE])]),
            target=_POINTS,
            at_least=False,
            details={"robust_accuracy": robust},
        ),
    ]


def _attacks(judged: Judged, effort: Effort) -> dict[str, JudgingAttack]:
    threat = {"norm": judged.threat.norm, "eps": judged.threat.eps}
    with torch.no_grad():
        classes = judged.network(to_pixels(judged.images[:1])).shape[1]
    materials = Materials(classes, None, Pool(judged.images[:1], judged.labels[:1]), None)
    attacks = build_attacks(Examination.parse({"threat": threat, "attacks": ["autoattack"]}), materials)
    return {name: _eased(attack, effort) for name, attack in attacks.items()}


def _eased(attack: JudgingAttack, effort: Effort) -> JudgingAttack:
    if isinstance(attack, Square):
        return replace(attack, queries=effort.queries)
    assert isinstance(attack, APGD | FAB)
    return replace(attack, steps=effort.steps)


@full_float32()
def _reference(judged: Judged, effort: Effort, seed: int, device: torch.device) -> float:
    """Robust accuracy, by a plain forward on its examples, of the network as others hold it, in float32 as ours."""
    import pyautoattack

    network = deepcopy(judged.network).to(memory_format=torch.contiguous_format)
    images = to_pixels(judged.images.to(device)).contiguous()
    labels = judged.labels.to(device)
    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[judged.threat.norm]
    peer: Any = pyautoattack.AutoAttack(network, norm=norm, eps=judged.threat.eps, seed=seed, device=device)
    for attack in (peer.apgd, peer.apgd_targeted, peer.fab):
        attack.n_iter = effort.steps
    peer.square.n_queries = effort.queries
    # It prints, and warns of gradients that vanish.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        examples = peer.run_standard_evaluation(images, labels, batch_size=_BATCH)[0]
    with torch.no_grad():
        taken_for = torch.cat([predictions(network(batch)) for batch in examples.to(device).split(_BATCH)])
    return float((taken_for == labels).double().mean())
