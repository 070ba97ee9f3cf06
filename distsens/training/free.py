"""Free adversarial training: one backward pass gives the weights' gradient and the images'."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from distsens.attacks import GradientAttack
from distsens.attacks.image_gradients import finite
from distsens.errors import InputError
from distsens.training.step import Batch, StepResult, TrainingStep

_OF_ALL_REPLAYS = ("gradient_evaluations", "attack_seconds", "seconds")


@dataclass
class FreeStep:
    """A step that trains ``replays`` times on each batch, while a perturbation of its images climbs along.

    Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019, algorithm 1: every replay forwards ``x + delta``,
    lets the optimizer step, and moves delta by one step of length eps up the gradient with respect to the images that
    the same backward pass gave (of the whole loss, so with SNS including its term). Each batch starts from what the
    batch before it left at the same position of the global batch, as far as it keeps the images in [0, 1].

    Otherwise than published, every epoch starts at ``delta = 0``, so that a checkpoint between epochs holds all that a
    resumed run needs. Learning rate, weight average and the refresh of SNS go by batches, not by replays.

    step : the step that is repeated; of its attack only the threat and ``l1_fraction`` count.
    replays : optimizer steps on each batch (m; the paper trains on CIFAR with 8 and divides the epochs by it).
    """

    step: TrainingStep
    replays: int
    _perturbation: Tensor | None = field(default=None, init=False)

    def begin_epoch(self) -> None:
        """Put the model in training mode and forget the perturbation."""
        self.step.begin_epoch()
        self._perturbation = None

    def trained_with(self, attack: GradientAttack) -> TrainingStep:
        """Give up the replays for this attack's examples."""
        return self.step.trained_with(attack)

    def __call__(
        self, batch: Batch, *, eps_factor: float = 1.0, sns_weight: float | None = None, awp_gamma: float = 0.0
    ) -> StepResult:
        """Train ``replays`` times on a batch.

        Of what is summed over images the mean over replays is told, so that these are counted once; gradients and
        seconds are those of all replays.
        """
        if awp_gamma > 0.0:
            raise InputError("training.awp_gamma", awp_gamma, "free adversarial training has no second pass for it")
        threat = self.step.attack.threat.scaled(eps_factor)
        points = batch.images
        if self._perturbation is not None:
            points = threat.project(points + self._perturbation, batch.images)
        sums: dict[str, Tensor | float] = {}
        norms = []
        for _ in range(self.replays):
            twins = points.detach().requires_grad_()
            result = self.step.descend(batch, twins, sns_weight=sns_weight)
            assert twins.grad is not None
            ascended = threat.ascend(points, finite(twins.grad), threat.eps, l1_fraction=self.step.attack.l1_fraction)
            points = threat.project(ascended, batch.images)
            for name, value in result.sums.items():
                part = value if name in _OF_ALL_REPLAYS else value / self.replays
                sums[name] = sums.get(name, 0.0) + part
            norms.append(result.gradient_norm)
        self._perturbation = points - batch.images
        return StepResult(sums, sum(norms) / len(norms))
