"""What the losses of several objectives have in common."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """``-(1 - s) log p_y - s / K * sum_k log p_k`` per image: (N,), with s the label smoothing in [0, 1).

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7. Only what is
    trained on is smoothed; attacks raise the cross-entropy of the label itself.
    """
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
