"""Is a model robust, or do its gradients only hide the way? Checks with a plain verdict each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distsens.attacks import GradientAttack, JudgingAttack, Threat, attack_view, cross_entropy, logits_of
from distsens.attacks.image_gradients import image_gradients
from distsens.data import to_pixels
from distsens.errors import InputError
from distsens.evaluation.last_iterate import LastIterate
from distsens.logits import predictions
from distsens.precision import full_float32
from distsens.randomness import sample_keys

_STARTS = 5
_MORE_STEPS = 4
_VANISHED = 1e-12
_SMALL_STEP = 0.01
# Images at the edge of what an attack can do fall from some starts and not from others, in any model.
_START_GAIN = 0.25


@dataclass(frozen=True)
class Check:
    """One symptom of gradient masking that was looked for.

    passed : it was not seen.
    values : what was measured, parts of the images in [0, 1].
    sentence : what was seen, and what it means.
    """

    name: str
    passed: bool
    values: Mapping[str, float]
    sentence: str


@full_float32()
def masking_checks(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: GradientAttack,
    *,
    gradient_free: JudgingAttack | None = None,
    seed: int = 0,
    tolerance: float = 0.02,
) -> list[Check]:
    """Look for the symptoms of masked gradients, on the images that the model classifies right.

    Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018, section 3.1, and Carlini et al.,
    "On Evaluating Adversarial Robustness", 2019, arXiv 1902.06705, sections 4 and 5. Passing them proves nothing;
    failing one means that robust accuracy under this attack is not to be believed.

    ============= ====================================================================================================
    zero gradient the gradient of the attack's loss, at the image, is nowhere above 1e-12
    small step    a step of eps / 100 along the gradient does not raise the loss
    random start  five random starts together succeed on a quarter more images than one on average
    more steps    one step, the attack's number and four times that, over the same distance, grow weaker
    unbounded     from the image itself to anywhere in [0, 1], with four times the steps, does not succeed
    gradient-free succeeds where the attack does not from any of those starts; checked if one is given
    ============= ====================================================================================================

    Parameters
    ----------
    model : any classifier of [0, 1] images; left as it was.
    images, labels : (N, C, H, W) in [0, 1] and (N,); a few hundred, as all are forwarded at once.
    attack : the gradient attack in question, with its threat, loss and precision; its restarts do not count.
    gradient_free : an attack in the same ball that uses none, such as Square.
    seed : random numbers depend on it and an image's position alone.
    tolerance : part of the images that may show a symptom.

    Raises
    ------
    InputError : the ball is a point, the tolerance is not in [0, 1), or the images are not.
    """
    images = to_pixels(images)
    if attack.threat.eps == 0.0:
        raise InputError("threat.eps", attack.threat.eps, "it must be above 0 for an attack to show anything")
    if not 0.0 <= tolerance < 1.0:
        raise InputError("tolerance", tolerance, "it must be in [0, 1)")
    right = (predictions(logits_of(model, images)) == labels).nonzero().squeeze(1)
    if len(right) == 0:
        return [Check("right images", False, {"right": 0.0}, f"None of {len(images)} images is classified right.")]
    keys = sample_keys(right, seed, "masking")
    trial = _Trial(model, images[right], labels[right], keys, replace(attack, restarts=1), tolerance)
    fates = trial.fates()
    checks = [*trial.gradients(), trial.random_start(fates), trial.more_steps(), trial.unbounded()]
    return checks if gradient_free is None else [*checks, trial.gradient_free(gradient_free, fates)]


@dataclass(frozen=True)
class _Trial:
    """Images that are classified right, and what is tried on them."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    keys: Tensor
    attack: GradientAttack
    tolerance: float

    def gradients(self) -> tuple[Check, Check]:
        """Whether there are gradients at the images, and whether they point to where the loss rises."""
        loss = self.attack.loss or cross_entropy
        with attack_view(self.model, precision=self.attack.precision) as logits:
            points = self.images.clone().requires_grad_()
            gradients = image_gradients(loss(logits(points), self.labels), points)
        vanished = self._part(gradients.flatten(1).abs().amax(1) <= _VANISHED)
        threat = self.attack.threat
        steps = threat.project(threat.ascend(self.images, gradients, _SMALL_STEP * threat.eps), self.images)
        # In float64, where the loss of a confident prediction is not rounded to zero.
        before, after = (loss(logits_of(self.model, x).double(), self.labels) for x in (self.images, steps))
        flat = self._part(~(after > before))  # So written, a loss that is NaN does not rise either.
        return (
            self._check(
                "zero gradient",
                vanished <= self.tolerance,
                {"vanished": vanished},
                f"The gradient of the attack's loss vanishes at {self._count(vanished)}",
                "so a gradient attack is told where to go",
                "so a gradient attack stands still there, and that it fails says nothing; "
                "a saturated or quantized part, or logits that are too large, may be the cause",
            ),
            self._check(
                "small step",
                flat <= self.tolerance,
                {"not rising": flat},
                f"A small step along the gradient does not raise the loss at {self._count(flat)}",
                "so gradients point to where the loss rises",
                "so the loss is shattered or flat, or its gradients are not its own",
            ),
        )

    def fates(self) -> Tensor:
        """Whether each random start of the attack breaks each image: (starts, N)."""
        attack = LastIterate(replace(self.attack, random_start="uniform"))
        return torch.stack([self._broken(attack, "start", number) for number in range(_STARTS)])

    def random_start(self, fates: Tensor) -> Check:
        """Whether an image's fate depends on where the attack starts."""
        rates = fates.double().mean(1)
        one, all_together = rates.mean().item(), self._part(fates.any(0))
        return self._check(
            "random start",
            all_together - one <= max(self.tolerance, _START_GAIN * one),
            {
                "success of one": one,
                "success of all": all_together,
                "standard deviation": rates.std().item(),
            },
            f"One random start breaks {100 * one:.1f} % of the images on average, and {_STARTS} together "
            f"{100 * all_together:.1f} %",
            "so most attempts end alike wherever they start",
            "so the start decides the end: the loss is rugged or flat, and attempts succeed by luck",
        )

    def more_steps(self) -> Check:
        """Whether an attack with more steps over the same distance is at least as strong."""
        counts = sorted({1, self.attack.steps, _MORE_STEPS * self.attack.steps})
        rates = [self._part(self._broken(LastIterate(self._with_steps(count)), "steps")) for count in counts]
        loss = max(max(rates[:i]) - rates[i] for i in range(1, len(rates)))
        seen = ", ".join(f"{100 * rate:.1f} % with {count}" for count, rate in zip(counts, rates, strict=True))
        return self._check(
            "more steps",
            loss <= self.tolerance,
            {f"success with {count}": rate for count, rate in zip(counts, rates, strict=True)},
            f"By its number of steps the attack breaks {seen}",
            "so more steps do not make it weaker",
            "so more steps make it weaker: it loses its way along the gradient, and a better one breaks more",
        )

    def unbounded(self) -> Check:
        """Whether an attack that may turn the image into any other succeeds everywhere."""
        # From the image itself: a random start would be another image already.
        attack = replace(
            self._with_steps(_MORE_STEPS * self.attack.steps, _everything(self.attack.threat.norm, self.images)),
            random_start="none",
        )
        standing = 1.0 - self._part(self._broken(LastIterate(attack), "unbounded"))
        return self._check(
            "unbounded",
            standing <= self.tolerance,
            {"standing": standing},
            f"An attack that may turn the image into any other fails at {self._count(standing)}",
            "so it finds its way if it is given room",
            "so it is stuck: whoever may change everything can always succeed, and where this attack fails without a "
            "bound, failing with one says nothing",
        )

    def gradient_free(self, other: JudgingAttack, fates: Tensor) -> Check:
        """Whether a search without gradients finds what no start of the gradient attack does."""
        missed = ~fates.any(0) & self._broken(other, "gradient-free")
        part = self._part(missed)
        return self._check(
            "gradient-free",
            part <= self.tolerance,
            {"missed": part},
            f"An attack without gradients succeeds where the one with gradients does not at {self._count(part)}",
            "so gradients miss little that a search without them finds",
            "so gradients lead astray: who can use them should not do worse than who cannot",
        )

    def _broken(self, attack: JudgingAttack, *context: str | int) -> Tensor:
        found = attack(self.model, self.images, self.labels, keys=sample_keys(self.keys, *context))
        return predictions(logits_of(self.model, found.adversarial)) != self.labels

    def _with_steps(self, steps: int, threat: Threat | None = None) -> GradientAttack:
        """The attack with as much way to go, relative to the ball, in so many steps."""
        threat = threat or self.attack.threat
        way = self.attack.steps * self.attack.step_size / self.attack.threat.eps
        return replace(self.attack, threat=threat, steps=steps, step_size=way * threat.eps / steps)

    def _part(self, which: Tensor) -> float:
        return which.double().mean().item()

    def _count(self, part: float) -> str:
        return f"{round(part * len(self.images))} of {len(self.images)} images"

    def _check(self, name: str, passed: bool, values: Mapping[str, float], seen: str, good: str, bad: str) -> Check:
        return Check(name, passed, values, f"{seen}, {good if passed else bad}.")


def _everything(norm: str, images: Tensor) -> Threat:
    """A ball around any image that holds all others."""
    pixels = images[0].numel()
    match norm:
        case "l2":
            return Threat("l2", math.sqrt(pixels))
        case "l1":
            return Threat("l1", float(pixels))
        case _:
            return Threat("linf", 1.0)
