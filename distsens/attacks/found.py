"""What an attack that judges a classifier gives back, and what such an attack is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Found:
    """The outcome of an attack on a batch.

    adversarial : (N, C, H, W) in the ball and in [0, 1]: where the attack succeeded an example that does it, elsewhere
        the best attempt.
    evaluations : (N,) int64, how often each image, changed or not, was shown to the classifier, with a gradient or
        without.
    """

    adversarial: Tensor
    evaluations: Tensor


class JudgingAttack(Protocol):
    """An attack with its settings, which tries to have images misclassified.

    It leaves the model as it was (see :func:`attack_view`), finds for an image the same whatever else is in the batch,
    and stops to spend on an image once that is misclassified (minimum-norm attacks, which go on to come closer, aside).
    Whatever the model's gradient is, examples are numbers (see :func:`finite`), and what the last step leads to is
    looked at.
    """

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, keys: Tensor | None = None) -> Found:
        """Attack.

        Parameters
        ----------
        model : any classifier of [0, 1] images.
        images, labels : (N, C, H, W) in [0, 1] and (N,).
        keys : (N,) integers; all random numbers of image i depend on ``keys[i]`` alone. Default: 0 to N-1.
        """
        ...
