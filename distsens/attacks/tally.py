"""What an attack starts from, and where it stands with each image of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from distsens.attacks.attack import check_pixels
from distsens.attacks.found import Found
from distsens.attacks.losses import margin
from distsens.attacks.threat import Threat
from distsens.errors import InputError
from distsens.logits import predictions


def inner(threat: Threat) -> Threat:
    """The ball to search, so that float32 points end in that of the threat: in L1 smaller by a part of 1e-6.

    The norm of an offset sums over thousands of coordinates that are each rounded.
    """
    return threat.scaled(1.0 - 1e-6) if threat.norm == "l1" else threat


class Tally:
    """The images of a batch, and per image the best attempt, whether it is misclassified, and its cost.

    Attributes
    ----------
    images, labels, keys : the batch. Copies, because autograd cannot save a tensor that was made in inference mode.

    Raises
    ------
    InputError : a key is missing, or the images are not in [0, 1].
    """

    def __init__(self, images: Tensor, labels: Tensor, keys: Tensor | None) -> None:
        self.images, self.labels = images.detach().clone(), labels.detach().clone()
        check_pixels(self.images)
        self.keys = torch.arange(len(images), device=images.device) if keys is None else keys
        if len(self.keys) != len(images):
            raise InputError("keys", tuple(self.keys.shape), f"one key for each of the {len(images)} images")
        self._adversarial = self.images.clone()
        self._losses = torch.full((len(images),), -torch.inf, device=images.device)
        self._broken = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self._evaluations = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    @property
    def left(self) -> Tensor:
        """Positions of the images that no attempt has had misclassified."""
        return (~self._broken).nonzero().squeeze(1)

    def count(self, rows: Tensor, evaluations: int) -> None:
        """Add evaluations to the images at these positions."""
        self._evaluations[rows] += evaluations

    def record(self, rows: Tensor, points: Tensor, losses: Tensor, broken: Tensor) -> None:
        """Note attempts on images that are left.

        Parameters
        ----------
        rows : (M,) positions of the images.
        points, losses, broken : (M, C, H, W), (M,) and (M,) of bool: the attempts, their losses (larger is better),
            and whether they are misclassified, which goes before any loss.
        """
        better = broken | (losses > self._losses[rows])
        self._adversarial[rows[better]] = points[better]
        self._losses[rows[better]] = losses[better]
        self._broken[rows] = broken

    def judge(self, rows: Tensor, points: Tensor, logits: Tensor, *, evaluations: int = 1) -> Tensor:
        """Count and note an example of each of these images that are left, by its margin; which of them still are.

        Parameters
        ----------
        rows : (M,) positions of the images.
        points, logits : (M, C, H, W) and (M, K), what the classifier was shown and what it said.
        evaluations : how often each of the images was shown to it since the last time.

        Returns
        -------
        (M,) of bool.
        """
        points, logits, labels = points.detach(), logits.detach(), self.labels[rows]
        broken = predictions(logits) != labels
        self.count(rows, evaluations)
        self.record(rows, points, margin(logits, labels).float(), broken)
        return ~broken

    def found(self) -> Found:
        """The outcome."""
        return Found(self._adversarial, self._evaluations)
