"""The closest adversarial examples: what a minimum-norm attack looks for, finds, and gives back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distsens.attacks.attack import check_pixels
from distsens.attacks.found import Found
from distsens.attacks.losses import margin
from distsens.attacks.threat import Threat
from distsens.attacks.view import Logits
from distsens.errors import InputError
from distsens.logits import NO_CLASS, predictions

# Logits differ by about as much, relative to the largest, when an image is shown in another batch: an example closer to
# the boundary might not stay misclassified.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Closest:
    """The outcome of a minimum-norm attack on a batch, wherever it lies.

    examples : (N, C, H, W) in [0, 1], misclassified; where no example was found, the image itself.
    distances : (N,) of the examples from the images, in the threat's norm: 0 for images that are misclassified
        themselves, infinite where no example was found.
    evaluations : (N,) int64, how often each image, changed or not, was shown to the classifier.
    """

    examples: Tensor
    distances: Tensor
    evaluations: Tensor

    def within(self, threat: Threat, images: Tensor) -> Found:
        """The examples inside the ball; those outside it are replaced by the nearest points of ball and [0, 1]."""
        # In float64, because float32 sums are off by more than an example may be.
        examples, centres = self.examples.double(), images.detach().double()
        outside = (threat.distance(centres, examples) > threat.eps).reshape(-1, *(1,) * (images.ndim - 1))
        projected = threat.project(examples, centres).to(self.examples.dtype)
        return Found(torch.where(outside, projected, self.examples).clamp_(0.0, 1.0), self.evaluations)


class Search:
    """Shows points to a classifier, counts them per image, and keeps the closest one that is misclassified.

    Images that are misclassified themselves are found at once. ``rows`` (M,) are the numbers of those to search for,
    and ``others`` (M, K - 1) the classes that they may be taken for, the likeliest first.

    Parameters
    ----------
    logits : of the classifier.
    threat : its norm measures the distances.
    images, labels, keys : as in :class:`JudgingAttack`.
    confidence : margin by which an example must be misclassified to be kept.

    Raises
    ------
    InputError : a key is missing, or the images are not in [0, 1].
    """

    def __init__(
        self,
        logits: Logits,
        threat: Threat,
        images: Tensor,
        labels: Tensor,
        keys: Tensor | None,
        confidence: float = 0.0,
    ) -> None:
        self._logits, self._threat, self._confidence = logits, threat, confidence
        # Clones, because autograd cannot save a tensor that the caller made in inference mode.
        self.images, self.labels = images.detach().clone(), labels.detach().clone()
        check_pixels(self.images)
        self.keys = torch.arange(len(images), device=images.device) if keys is None else keys
        if len(self.keys) != len(images):
            raise InputError("keys", tuple(self.keys.shape), f"one key for each of the {len(images)} images")
        self._examples = self.images.clone()
        self._distances = torch.full((len(images),), torch.inf, device=images.device)
        self._evaluations = torch.ones(len(images), dtype=torch.int64, device=images.device)
        with torch.no_grad():
            outputs = logits(self.images)
        mistaken = predictions(outputs) != self.labels
        self._distances[mistaken] = 0.0
        self.rows = torch.nonzero(~mistaken).squeeze(1)
        rivals = outputs[self.rows].scatter(1, self.labels[self.rows, None], -torch.inf)
        self.others = rivals.argsort(dim=1, descending=True, stable=True)[:, :-1]

    def show(self, rows: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (M, K) of points (M, C, H, W) for the images ``rows`` (M,), and the excess (M,) of their margins.

        That is the margin beyond the confidence and what rounding may do to it: above 0 for examples.
        """
        outputs = self._logits(points)
        with torch.no_grad():
            excess = margin(outputs, self.labels[rows]) - self._confidence - _ROUNDING * outputs.abs().amax(1)
            excess[predictions(outputs) == NO_CLASS] = torch.finfo(excess.dtype).max  # wrong, by whatever margin
            distances = self._threat.distance(self.images[rows], points)
            closer = (excess > 0.0) & (distances < self._distances[rows])
            self._evaluations[rows] += 1
            self._examples[rows[closer]] = points.detach()[closer]
            self._distances[rows[closer]] = distances[closer]
        return outputs, excess

    def distances(self, rows: Tensor) -> Tensor:
        """Distances (M,) of the closest examples so far."""
        return self._distances[rows]

    def examples(self, rows: Tensor) -> Tensor:
        """The closest examples (M, C, H, W) so far."""
        return self._examples[rows]

    def closest(self) -> Closest:
        """What was found."""
        return Closest(self._examples, self._distances, self._evaluations)
