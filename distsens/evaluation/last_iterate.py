"""A gradient attack as one that judges."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from distsens.attacks import Found, GradientAttack, Tally, logits_of
from distsens.precision import full_float32
from distsens.randomness import sample_keys


@dataclass(frozen=True)
class LastIterate:
    """Judges by the last iterate of a :class:`GradientAttack`: PGD-k with restarts, its margin variant, MIM, ...

    Images that are misclassified as they are are left so. The others get ``attack.restarts`` attempts, each from a
    start of its own, but none after the first that succeeds; where none does, the one with the largest margin is kept.
    An attempt succeeds if its last iterate is misclassified, in float32, whatever those before it were: so attacks are
    reported in their papers, and an attack that overshoots shows. Each costs ``attack.steps`` evaluations and one more.

    Parameters
    ----------
    attack : with any loss of its own; without one it raises the cross-entropy.
    """

    attack: GradientAttack

    @full_float32()
    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, keys: Tensor | None = None) -> Found:
        """Attack; arguments and result as in :class:`JudgingAttack`."""
        tally = Tally(images, labels, keys)
        if len(images) == 0:
            return tally.found()
        tally.judge(tally.left, tally.images, logits_of(model, tally.images))
        once = replace(self.attack, restarts=1)
        for restart in range(self.attack.restarts):
            rows = tally.left
            if len(rows) == 0:
                break
            restart_keys = sample_keys(tally.keys[rows], "restart", restart)
            points = once(model, tally.images[rows], tally.labels[rows], keys=restart_keys)
            tally.judge(rows, points, logits_of(model, points), evaluations=self.attack.steps + 1)
        return tally.found()
