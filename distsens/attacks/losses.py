"""What an attack makes large: one value per image, so that images never influence one another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from distsens.errors import InputError

AttackLoss = Callable[[Tensor, Tensor], Tensor]
"""From logits (N, K) and targets to (N,) values."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``-log softmax(logits)[label]`` per image: (N,). Targets are labels (N,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def kl_divergence(logits: Tensor, benign_logits: Tensor) -> Tensor:
    """``KL(softmax(benign_logits) || softmax(logits))`` per image: (N,). Targets are benign logits (N, K)."""
    benign = F.log_softmax(benign_logits, dim=1)
    return F.kl_div(F.log_softmax(logits, dim=1), benign, reduction="none", log_target=True).sum(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """``max over k != label of logits_k - logits_label`` per image: (N,), positive where the image is misclassified.

    Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", IEEE S&P 2017, f_6, without its cut at a
    confidence. Unlike the cross-entropy's, its gradient does not vanish where the classifier is certain.
    """
    labels = labels[:, None]
    others = logits.scatter(1, labels, -torch.inf)
    return others.amax(1) - logits.gather(1, labels).squeeze(1)


def least_likely(logits: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001
    """``log softmax(logits)[argmin logits]`` per image: (N,). Targets are not used: the prediction is its own."""
    return -cross_entropy(logits, logits.argmin(1))


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio ``-(z_y - max over k != y of z_k) / (z_(1) - z_(3))`` per image: (N,).

    ``z_(j)`` is the j-th largest logit. Neither a shift nor a positive factor of the logits changes it, so that no
    scale of the logits hides its gradient. Positive where the image is misclassified.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    ICML 2020, equation 6.

    Raises
    ------
    InputError : there are fewer than 3 classes.
    """
    largest = _largest(logits, 3)
    return margin(logits, labels) / _positive(largest[:, 0] - largest[:, 2])


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)`` per image: (N,), large where it is taken for the target t.

    Croce and Hein, ICML 2020, equation 7; compare :func:`dlr`.

    Raises
    ------
    InputError : there are fewer than 4 classes.
    """
    largest = _largest(logits, 4)
    ahead = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
    return ahead / _positive(largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2.0)


def _largest(logits: Tensor, count: int) -> Tensor:
    """The ``count`` largest logits (N, count), in order."""
    classes = logits.shape[1]
    if classes < count:
        kind = "DLR" if count == 3 else "targeted DLR"
        raise InputError("classes", classes, f"the {kind} loss needs {count} classes or more")
    return logits.topk(count, dim=1).values


def _positive(spread: Tensor) -> Tensor:
    """The spread of the logits, kept from 0, at which a classifier does not tell its classes apart."""
    return spread.clamp(min=1e-12)
