"""One training step: generate, forward both halves once, add the stabilizing term, descend."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distsens.attacks import GradientAttack
from distsens.logits import checked_logits, predictions
from distsens.networks import keeping_buffers, memory_format_of
from distsens.objectives import Objective
from distsens.sensitivity import ActivationProbe, PairSums, SharedNoise, Stabilizer, pair_sums, same_noise
from distsens.training.batch_norm import BatchNormHalves, keeping_statistics, normalising_halves
from distsens.training.halves import Halves
from distsens.training.sync_batch_norm import sharing_statistics
from distsens.training.weight_perturbation import perturbed_weights


@dataclass(frozen=True)
class Batch:
    """Share of one global batch that falls to this worker.

    images : (N, C, H, W) float32 in [0, 1]; labels : (N,) int64.
    keys : (N,) int64, what the random starts depend on.
    global_size : images in the global batch, over all workers.
    start : position of the share's first image in the global batch.
    """

    images: Tensor
    labels: Tensor
    keys: Tensor
    global_size: int
    start: int = 0


@dataclass(frozen=True)
class StepResult:
    """Sums over this worker's share, to be added up and reduced once an epoch.

    sums : ``images``, ``attack_seconds``, ``seconds``, ``gradient_evaluations``, ``correct/...`` of the halves that the
        objective uses, and ``loss/...``.
    gradient_norm : of the global batch's gradient before clipping, equal on all workers.
    """

    sums: dict[str, Tensor | float]
    gradient_norm: float

    @property
    def finite(self) -> bool:
        """False if the loss or its gradient was NaN or infinite; the parameters were then left as they were."""
        return self.gradient_norm < float("inf")


@dataclass
class TrainingStep:
    """The parts of a step.

    model : what gradients flow through: a classifier, or DDP around it (whose gradient average is undone exactly, so
        that the gradient is the mean over the global batch however it is shared out).
    attack : makes the adversarial twins, inside the attack view.
    stabilizer : SNS, or None.
    layers : the stabilizer's layers.
    precision : type of the training forward by autocast; weights stay float32.
    gradient_clip : largest norm of the gradient, or None.
    world_size : number of workers that share a global batch.
    batch_norm : which statistics normalise the two halves, see ``BatchNormHalves``.
    sync_batch_norm : take those of all workers' images, so that they are the statistics of the global batch.
    """

    model: nn.Module
    optimizer: Optimizer
    objective: Objective
    attack: GradientAttack
    stabilizer: Stabilizer | None = None
    layers: tuple[str, ...] = ()
    precision: torch.dtype | None = None
    gradient_clip: float | None = None
    world_size: int = 1
    batch_norm: BatchNormHalves = "joint"
    sync_batch_norm: bool = True

    def __post_init__(self) -> None:
        self._draws: bool | None = None  # whether the network draws random numbers, as far as this epoch tells

    def begin_epoch(self) -> None:
        """Put the model in training mode."""
        self._draws = None
        self.model.train()

    def trained_with(self, attack: GradientAttack) -> TrainingStep:
        """Train on this attack's examples from now on."""
        self.attack = attack
        return self

    def __call__(
        self, batch: Batch, *, eps_factor: float = 1.0, sns_weight: float | None = None, awp_gamma: float = 0.0
    ) -> StepResult:
        """Take one step on a batch; collective when several workers share it.

        Parameters
        ----------
        eps_factor : of the ball and of the attack's steps.
        sns_weight : weight of the stabilizing term; 0 only measures sensitivities, None lets SNS sleep.
        awp_gamma : length of the adversarial weight perturbation, see :func:`perturbed_weights`; 0 for none.
        """
        began = _now(batch.images)
        twins, evaluations = self._generate(batch, self._compared(batch, sns_weight), eps_factor)
        attack_seconds = _now(batch.images) - began if evaluations else 0.0
        result = self.descend(batch, twins, sns_weight=sns_weight, awp_gamma=awp_gamma)
        seconds = attack_seconds + result.sums["seconds"]
        told = {"gradient_evaluations": float(evaluations), "attack_seconds": attack_seconds, "seconds": seconds}
        return replace(result, sums={**result.sums, **told})

    def descend(
        self, batch: Batch, twins: Tensor, *, sns_weight: float | None = None, awp_gamma: float = 0.0
    ) -> StepResult:
        """Descend the loss on the images and their twins, wherever these come from; they may ask for a gradient.

        ``twins`` are those of all images where the objective uses any, else of the images that SNS compares.
        """
        began = _now(batch.images)
        layout = memory_format_of(self.model, batch.images)
        halves = Halves.of(self.objective, batch.images, twins, self._compared(batch, sns_weight), layout)
        # Around the backward passes too, in which a network that saves memory runs its layers once more.
        shared = sharing_statistics(self.model) if self.world_size > 1 and self.sync_batch_norm else nullcontext()
        with shared, self._sharing_noise(halves):
            loss, sums = self._loss(batch, halves, sns_weight)
            self._backward(loss)
            if awp_gamma > 0.0:
                # What is told, measured and tracked is that of the weights themselves, which are also validated.
                with perturbed_weights(self.model, awp_gamma), keeping_statistics(self.model):
                    self._backward(self._loss(batch, halves, sns_weight, measure=False)[0])
        norm = self._update()
        evaluations = float(len(twins)) if twins.requires_grad else 0.0
        told = {"gradient_evaluations": evaluations, "attack_seconds": 0.0, "seconds": _now(batch.images) - began}
        return StepResult({"images": float(len(batch.images)), **told, **sums}, norm)

    def unshared_noise(self, images: Tensor) -> dict[str, float]:
        """How much the stabilized neurons say differently of equal pairs in a training forward, whatever the reason.

        Per layer it is the mean absolute change over the mean absolute output, of the images (N, C, H, W) and
        themselves: 0 unless something is drawn, or normalised, otherwise for the two, which SNS takes for sensitivity.
        Nothing of it stays with the model or the stabilizer.
        """
        if self.stabilizer is None:
            return {}
        compared = self.stabilizer.pairs(0, len(images))
        twins = images if self.objective.uses_adversarial else images[compared]
        halves = Halves.of(self.objective, images, twins, compared, memory_format_of(self.model, images))
        sums: dict[str, PairSums] = {}

        def read(layer: str, outputs: Tensor) -> None:
            assert halves.pairs is not None
            sums[layer] = pair_sums(outputs[halves.pairs.benign], outputs[halves.pairs.adversarial])

        training = self.model.training
        self.model.train()
        try:
            with (
                torch.no_grad(),
                same_noise(self.model),
                keeping_buffers(self.model),
                self._normalising(halves),
                self._sharing_noise(halves),
                ActivationProbe(self.model, self.layers, read),
            ):
                self.model(halves.images)
        finally:
            self.model.train(training)
            self._draws = None
        return {
            layer: float(one.difference.sum() / one.magnitude.sum().clamp(min=1e-30)) for layer, one in sums.items()
        }

    @contextmanager
    def _sharing_noise(self, halves: Halves) -> Iterator[None]:
        """Give both images of a pair the same dropout, if the network was seen to draw anything in this epoch."""
        if halves.pairs is None or self._draws is False:
            yield
            return
        noise = SharedNoise(self.model, halves.noise_source())
        with noise:
            yield
        self._draws = noise.drawn

    def _compared(self, batch: Batch, sns_weight: float | None) -> slice | None:
        """Which of the images SNS compares with their twins; None while it sleeps."""
        if self.stabilizer is None or sns_weight is None:
            return None
        return self.stabilizer.pairs(batch.start, len(batch.images))

    def _generate(self, batch: Batch, compared: slice | None, eps_factor: float) -> tuple[Tensor, int]:
        """Twins of the images that need one, and the number of gradients that they took."""
        chosen = slice(None) if self.objective.uses_adversarial else compared or slice(0)
        images = batch.images[chosen]
        if len(images) == 0:
            return images, 0
        attack = self.attack.scaled(eps_factor)
        twins = self.objective.generate(attack, self.model, images, batch.labels[chosen], batch.keys[chosen])
        return twins, attack.gradient_evaluations * len(images)

    def _loss(
        self, batch: Batch, halves: Halves, sns_weight: float | None, *, measure: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the global batch as far as this share goes, and the sums that tell of it."""
        logits, distances = self._forward(halves, sns_weight, measure=measure)
        benign = logits[: halves.boundary] if self.objective.uses_benign else None
        adversarial = logits[halves.boundary :] if self.objective.uses_adversarial else None
        parts = self.objective.loss(benign, adversarial, batch.labels)
        if distances is not None and self.stabilizer and sns_weight:
            # A mean over the compared pairs of the global batch, where the other parts are one over its images.
            parts["stabilizing"] = sns_weight * distances * self.stabilizer.scale(batch.global_size)
        totals = {name: values.sum() for name, values in parts.items()}

        sums = {f"loss/{name}": total.detach().double() for name, total in totals.items()}
        for name, half in (("benign", benign), ("adversarial", adversarial)):
            if half is not None:
                sums[f"correct/{name}"] = (predictions(half.detach()) == batch.labels).sum().double()
        return torch.stack(list(totals.values())).sum() / batch.global_size, sums

    def _forward(self, halves: Halves, sns_weight: float | None, *, measure: bool) -> tuple[Tensor, Tensor | None]:
        """Logits of both halves from one forward and, where SNS weighs something, the distances of the pairs."""
        with ExitStack() as around:
            kind = halves.images.device.type
            around.enter_context(torch.autocast(kind, dtype=self.precision, enabled=self.precision is not None))
            around.enter_context(self._normalising(halves))
            if self.stabilizer is None or halves.pairs is None:
                return self._logits(halves.images), None
            read = partial(self.stabilizer.read, rows=halves.pairs, measure=measure, term=sns_weight != 0)
            probe = around.enter_context(ActivationProbe(self.model, self.layers, read))
            logits = self._logits(halves.images)
        if measure:
            self.stabilizer.count(probe.outputs)
        return logits, self.stabilizer.term(probe.outputs)

    def _logits(self, images: Tensor) -> Tensor:
        return checked_logits(self.model(images), len(images)).float()

    def _normalising(self, halves: Halves) -> AbstractContextManager[None]:
        if halves.pairs or (self.objective.uses_benign and self.objective.uses_adversarial):
            return normalising_halves(self.model, halves.boundary, len(halves.images), self.batch_norm)
        return nullcontext()

    def _backward(self, loss: Tensor) -> None:
        """Set the parameters' gradients to those of the global batch's loss."""
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages over workers; their shares of the loss are to be summed. An infinite loss can have a finite
        # gradient: 0 * inf makes it NaN, so that every worker learns of it.
        (loss * (self.world_size + 0.0 * loss.detach())).backward()

    def _update(self) -> float:
        """Let the optimizer step unless the gradient is not finite; the gradient's norm before clipping."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        limit = self.gradient_clip if self.gradient_clip is not None else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit).item()
        if norm < float("inf"):
            self.optimizer.step()
        return norm


def _now(images: Tensor) -> float:
    """Seconds on a clock that waits for the device, so that the attack's share of a step is its own."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter()
