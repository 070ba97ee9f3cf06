"""Examples that were made on one model, and judged on another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from distsens.attacks import Found, GradientAttack, JudgingAttack, Tally, Threat, logits_of
from distsens.precision import full_float32


@dataclass(frozen=True, eq=False)
class Transfer:
    """The attack is made on ``source`` and succeeds where the judged model is wrong, whatever the source says.

    Papernot et al., "Transferability in Machine Learning: from Phenomena to Black-Box Attacks using Adversarial
    Samples", 2016, arXiv 1605.07277. If it breaks images that attacks on the model itself do not, these were led astray
    by the model's gradients. Only what the judged model is shown counts as evaluations: an image as it is and, where it
    gets that right, its example.

    Parameters
    ----------
    source : another classifier of the same images and classes, on the same device, e.g. another checkpoint.
    attack : how examples are made. A :class:`JudgingAttack` ends as soon as the source is wrong, so just beyond its
        boundary; a :class:`GradientAttack` takes all of its steps, which transfers better.
    threat : the ball that counts. Examples from elsewhere, of a minimum-norm attack or another ball, are projected.
    """

    source: nn.Module
    attack: GradientAttack | JudgingAttack
    threat: Threat

    @full_float32()
    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, keys: Tensor | None = None) -> Found:
        """Attack; arguments and result as in :class:`JudgingAttack`."""
        tally = Tally(images, labels, keys)
        if len(images) == 0:
            return tally.found()
        tally.judge(tally.left, tally.images, logits_of(model, tally.images))
        rows = tally.left
        if len(rows) > 0:
            made = self.attack(self.source, tally.images[rows], tally.labels[rows], keys=tally.keys[rows])
            examples = made.adversarial if isinstance(made, Found) else made
            points = self.threat.project(examples, tally.images[rows])
            tally.judge(rows, points, logits_of(model, points))
        return tally.found()
