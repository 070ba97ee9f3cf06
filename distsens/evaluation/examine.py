"""Judge a classifier on some images by a list of attacks, and keep for each image what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distsens.attacks import JudgingAttack, Threat
from distsens.data import corrupt, to_pixels
from distsens.errors import InputError
from distsens.evaluation.ledger import (
    CLEAN,
    Ledger,
    broken_column,
    corruption_column,
    curve_column,
    evaluations_column,
)
from distsens.logits import NO_CLASS, plain_logits, predictions
from distsens.precision import full_float32
from distsens.randomness import sample_keys

TOLERANCE = 1e-6
"""How far outside [0, 1] and the ball (of a radius above 1: relative to it) an example may lie, by rounding."""


@dataclass(frozen=True)
class Judgement:
    """Everything that an image is put through.

    threat : the ball that examples must lie in.
    attacks : by name, in order; an image broken by one is spared the next, unless ``every_attack``.
    curve : the attack at each radius of the eps curve, in its own ball of that radius.
    corruptions : families and severities.
    seed : random numbers depend on it, the attack's name and the image's number alone.
    batch_size : images attacked at a time.
    """

    threat: Threat
    attacks: Mapping[str, JudgingAttack]
    curve: Mapping[float, tuple[Threat, JudgingAttack]] = field(default_factory=dict)
    corruptions: Sequence[tuple[str, int]] = ()
    seed: int = 0
    batch_size: int = 250
    every_attack: bool = False


@dataclass(frozen=True)
class Examined:
    """The ledger of some images and, for each, the example that broke it, else the last attempt: (N, C, H, W)."""

    ledger: Ledger
    adversarial: Tensor


@full_float32()
def examine(
    model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, judgement: Judgement, device: torch.device
) -> Examined:
    """Judge a classifier on images, in float32 and by a plain forward, whatever an attack may claim.

    An image whose logits are not all finite, as it is or attacked, is misclassified, and counted (``not_finite``); so
    is one for which an attack gives pixels that are not: nothing has shown that it is robust.

    Parameters
    ----------
    model : any classifier of [0, 1] images, on the device, in eval mode.
    images, labels : uint8, or floating-point in [0, 1], (N, C, H, W); and int64 (N,).
    numbers : (N,) the images' numbers in the split.

    Raises
    ------
    InputError : what the model returns is not logits, or the images are of another kind, or not uint8 where they are
        to be corrupted.
    """
    if judgement.corruptions and images.dtype != torch.uint8:
        kind = str(images.dtype).removeprefix("torch.")
        raise InputError("images", kind, "must be uint8: corruptions are made of images of 256 levels")
    pixels, labels, numbers = to_pixels(images.to(device)), labels.to(device), numbers.to(device)
    bench = _Bench(model, pixels, labels, numbers, judgement)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        bench.clean()
        for name, attack in judgement.attacks.items():
            bench.attack(name, attack)
        bench.curve()
        for family, severity in judgement.corruptions:
            keys = sample_keys(numbers, judgement.seed, "corruption")
            bench.corruption(family, severity, corrupt(images, family, severity, keys.cpu()))
    return Examined(bench.ledger(), bench.adversarial.cpu())


class _Bench:
    """Images under judgement, and what became of them so far."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, judgement: Judgement) -> None:
        self.model, self.images, self.labels, self.numbers = model, images, labels, numbers
        self.judgement = judgement
        self.adversarial = images.clone()
        self.columns: dict[str, Sequence[object]] = {}
        count = len(images)
        self.prediction = torch.zeros(count, dtype=torch.int64, device=images.device)
        self.right = torch.ones(count, dtype=torch.bool, device=images.device)
        self.broken_by: list[str | None] = [None] * count
        self.broken_as: list[int | None] = [None] * count
        self.distance: list[float | None] = [None] * count
        self.evaluations = torch.ones(count, dtype=torch.int64, device=images.device)
        self.violations = torch.zeros(count, dtype=torch.int64, device=images.device)
        self.not_finite = torch.zeros(count, dtype=torch.bool, device=images.device)

    def batches(self, rows: Tensor) -> Sequence[Tensor]:
        return rows.split(self.judgement.batch_size) if len(rows) else ()

    @torch.no_grad()
    def predict(self, images: Tensor, rows: Tensor | slice = slice(None), valid: Tensor | bool = True) -> Tensor:
        """Predictions by a plain forward in float32; of a random model with other noise than an attack has seen.

        ``rows`` are the positions of the images under judgement that these are made of, ``valid`` whether they count.
        """
        self.reseed(self.numbers, "verdict")
        with torch.autocast(images.device.type, enabled=False):
            parts = [plain_logits(self.model, batch.contiguous()) for batch in images.split(self.judgement.batch_size)]
        predicted = predictions(torch.cat(parts))
        self.not_finite[rows] |= valid & (predicted == NO_CLASS)
        return predicted

    def judged(self, threat: Threat, examples: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether the examples of these images keep to the rules, what they are taken for, and whether they break them.

        Those with pixels that are NaN or infinite keep to no rule, are of no class, and break their images.
        """
        lost = ~examples.isfinite().flatten(1).all(1)
        valid = inside(threat, examples, self.images[rows])
        predicted = self.predict(examples, rows, valid).masked_fill(lost, NO_CLASS)
        self.not_finite[rows] |= lost
        return valid, predicted, lost | (valid & (predicted != self.labels[rows]))

    def reseed(self, numbers: Tensor, *context: str) -> None:
        """What is random in a model itself depends on the images too, and not on what its process did before."""
        torch.manual_seed(int(sample_keys(numbers[:1], self.judgement.seed, "model", *context)[0]))

    def clean(self) -> None:
        self.prediction = self.predict(self.images)
        self.right = self.prediction == self.labels
        for row in (~self.right).nonzero().squeeze(1).tolist():
            self.broken_by[row] = CLEAN

    def attack(self, name: str, attack: JudgingAttack) -> None:
        """Run an attack on the images that still stand, or on all classified right, and check what it found."""
        standing = torch.tensor([by is None for by in self.broken_by], device=self.images.device)
        broken: list[object] = [None] * len(self.images)
        spent = torch.zeros_like(self.evaluations)
        target = self.right if self.judgement.every_attack else standing
        for rows in self.batches(target.nonzero().squeeze(1)):
            keys = sample_keys(self.numbers[rows], self.judgement.seed, "judge", name)
            self.reseed(self.numbers[rows], name)
            found = attack(self.model, self.images[rows], self.labels[rows], keys=keys)
            spent[rows] = found.evaluations
            valid, predicted, fooled = self.judged(self.judgement.threat, found.adversarial, rows)
            self.violations[rows] += (~valid).long()
            distances = self.judgement.threat.distance(self.images[rows], found.adversarial)
            for i, row in enumerate(rows.tolist()):
                broken[row] = bool(fooled[i])
                if self.broken_by[row] is not None:
                    continue
                if valid[i]:
                    self.adversarial[row] = found.adversarial[i]
                if fooled[i]:
                    self.broken_by[row], self.broken_as[row] = name, int(predicted[i])
                    self.distance[row] = float(distances[i]) if valid[i] else None
        self.evaluations += spent
        self.columns[broken_column(name)] = broken
        self.columns[evaluations_column(name)] = spent.tolist()

    def curve(self) -> None:
        """From the smallest radius up: what is broken inside a ball is broken in every larger one."""
        standing = self.right.clone()
        for eps in sorted(self.judgement.curve):
            threat, attack = self.judgement.curve[eps]
            for rows in self.batches(standing.nonzero().squeeze(1)):
                keys = sample_keys(self.numbers[rows], self.judgement.seed, "curve")
                self.reseed(self.numbers[rows], "curve")
                found = attack(self.model, self.images[rows], self.labels[rows], keys=keys)
                standing[rows] = ~self.judged(threat, found.adversarial, rows)[2]
            self.columns[curve_column(eps)] = standing.tolist()

    def corruption(self, family: str, severity: int, corrupted: Tensor) -> None:
        """Keep what the corrupted images, uint8, are taken for."""
        right = self.predict(to_pixels(corrupted.to(self.images.device))) == self.labels
        self.columns[corruption_column(family, severity)] = right.tolist()

    def ledger(self) -> Ledger:
        return Ledger.of(
            {
                "image": self.numbers.tolist(),
                "label": self.labels.tolist(),
                "prediction": self.prediction.tolist(),
                "broken_by": self.broken_by,
                "adversarial_prediction": self.broken_as,
                "distance": self.distance,
                "evaluations": self.evaluations.tolist(),
                "violations": self.violations.tolist(),
                "not_finite": self.not_finite.tolist(),
                **self.columns,
            }
        )


def inside(threat: Threat, points: Tensor, images: Tensor) -> Tensor:
    """Whether each point lies in the ball around its image and in [0, 1], and is a number at all: bool (N,)."""
    near = threat.distance(images.double(), points.double()) <= threat.eps + TOLERANCE * max(1.0, threat.eps)
    flat = points.flatten(1)
    return near & (flat.amin(1) >= -TOLERANCE) & (flat.amax(1) <= 1.0 + TOLERANCE)
