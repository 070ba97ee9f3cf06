"""An attack on models whose sensitive neurons were stabilized (SNS), by someone who knows that they were."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from distsens.attacks import Found, GradientAttack, Tally, Threat, attack_view, margin
from distsens.attacks.image_gradients import image_gradients
from distsens.attacks.view import Logits
from distsens.errors import InputError
from distsens.evaluation.stabilized import StabilizedNeurons
from distsens.logits import NO_CLASS, predictions
from distsens.precision import full_float32
from distsens.randomness import sample_keys
from distsens.sensitivity import (
    ActivationProbe,
    PairSums,
    SensitivityMeter,
    SharedNoise,
    Stabilizing,
    match_layers,
    pair_noise,
    pair_sums,
    split_pairs,
)

# Enough to find neurons and units by; the attack itself takes as many steps as it is told.
_POOL_STEPS = 10
# Pairs of the pool that go through the model at a time: of a large one every layer's outputs are held for no more.
_PAIRS_AT_A_TIME = 32


@dataclass(frozen=True, eq=False)
class Pool:
    """Images that the attacker has besides those under attack, a few hundred: (P, C, H, W) in [0, 1] and labels (P,).

    Raises
    ------
    InputError : there is no image, or not one label for each.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if len(self.images) == 0 or len(self.images) != len(self.labels):
            shapes = (tuple(self.images.shape), tuple(self.labels.shape))
            raise InputError("pool", shapes, "one image or more, and one label for each")


@dataclass(frozen=True, eq=False)
class Adaptive:
    """Several attempts on each image, each from a random start, until one succeeds.

    The model was trained with a term that holds its sensitive neurons m in Omega_l still (see ``Stabilizer``),

        T(x, x') = mean over layers l of mean over m in Omega_l of distance(F_l^m(x), F_l^m(x')) / dim,

    so that an attack on the prediction alone may be led astray where the term has flattened the loss. An attempt makes
    large

    - for every w in ``weights``: ``margin(f(x'), y) + w u T(x, x')``. A w above 0 pushes the stabilized neurons away
      from where they were held, one below 0 leaves them where they are and goes through the others, past the term;
      0 is the margin alone. The unit u is the mean absolute change of the margin over the mean of T, between the
      pool's images and their twins under PGD, so that with w = 1 both count alike whatever their scales are;
    - then: ``-||F_L(x') - F_L(z)||_2^2``, which matches the features of the last of the layers with those of a pool's
      image z that the model takes for another class than y, the nearest one in these features (Sabour et al.,
      "Adversarial Manipulation of Deep Representations", ICLR 2016, equation 1); the next restart takes the next.

    Steps shrink as half a cosine, from ``step_size`` to 0, and w with them: the term settles which way an attempt goes,
    the margin where it ends. An image leaves at the first iterate that is misclassified. The neurons are those that the
    training would select on the pool's pairs. Forward and backward passes are in float32. The attacker's study of the
    pool is made once for a model, as long as that stays as it is, and not counted as evaluations of the images.

    Sources: Zhang et al., IEEE TIP 2021, arXiv 1909.06978, for the term; Tramèr et al., "On Adaptive Attacks to
    Adversarial Example Defenses", NeurIPS 2020, for attacking it.

    Parameters
    ----------
    threat : the ball.
    pool : what the attacker learns the model on, e.g. images of the validation split.
    steps : of each attempt.
    step_size : length of the first step (in the norm, pixel space); default eps.
    restarts : how often all attempts are made, from other starts.
    layers : whose neurons were stabilized; names, globs or ``"auto"``, see :class:`ActivationProbe`.
    stabilizing : how they were: ratio, selection, distance and measure.
    weights : w of the attempts, in their order.

    Raises
    ------
    InputError : a setting is out of range, or a layer unknown.
    """

    threat: Threat
    pool: Pool
    steps: int = 100
    step_size: float | None = None
    restarts: int = 1
    layers: tuple[str, ...] = ("auto",)
    stabilizing: Stabilizing = field(default_factory=Stabilizing)
    weights: tuple[float, ...] = (0.0, 1.0, -1.0, 0.3, -0.3)
    _learnt: WeakKeyDictionary[nn.Module, tuple[object, _Learnt]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError("attack.steps", self.steps, "it must be 1 or more")
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size >= 0.0):
            raise InputError("attack.step_size", self.step_size, "it must be a finite number, 0 or more")
        if self.restarts < 1:
            raise InputError("attack.restarts", self.restarts, "it must be 1 or more")
        if not all(math.isfinite(weight) for weight in self.weights):
            raise InputError("attack.weights", self.weights, "they must be finite numbers")

    @full_float32()
    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, keys: Tensor | None = None) -> Found:
        """Attack; arguments and result as in :class:`JudgingAttack`."""
        # All of it in the view, so that a caller's inference mode reaches nothing that a gradient goes through.
        with attack_view(model) as logits:
            tally = Tally(images, labels, keys)
            if len(images) == 0:
                return tally.found()
            study = _Study(self._learn(model, logits, images.device), model, self.weights)
            benign = study.look(logits, tally)
            for restart in range(self.restarts):
                for number, aim in enumerate(study.aims(benign, tally, restart)):
                    rows = tally.left
                    if len(rows) == 0:
                        return tally.found()
                    start_keys = sample_keys(tally.keys[rows], "adaptive", restart, number)
                    start = self.threat.start(tally.images[rows], start_keys, "uniform")
                    with aim.reading:
                        self._climb(logits, aim.goal, tally, rows, start)
            return tally.found()

    def _learn(self, model: nn.Module, logits: Logits, device: torch.device) -> _Learnt:
        """What the pool tells of the model, from the last call if it has not changed since."""
        state = _state_of(model), device
        known = self._learnt.get(model)
        if known is None or known[0] != state:
            known = state, _learn(self, model, logits, device)
            self._learnt[model] = known
        return known[1]

    def _climb(self, logits: Logits, goal: _Goal, tally: Tally, rows: Tensor, points: Tensor) -> None:
        """One attempt on the images of these numbers, each until it is misclassified."""
        longest = self.threat.eps if self.step_size is None else self.step_size
        for step in range(self.steps + 1):
            points = points.detach().requires_grad_()
            outputs = logits(points)
            stands = tally.judge(rows, points, outputs)
            if step == self.steps or not stands.any():
                return
            left = 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
            gradients = image_gradients(goal(outputs, rows, left), points)
            with torch.no_grad():
                rows, points, gradients = rows[stands], points[stands], gradients[stands]
                points = self.threat.ascend(points, gradients, longest * left)
                points = self.threat.project(points, tally.images[rows])


_Goal = Callable[[Tensor, Tensor, float], Tensor]
"""What an attempt makes large: (M,) values from logits (M, K), the numbers (M,) of the images, and what is left of the
term's weight."""


@dataclass(frozen=True)
class _Aim:
    """A goal, and what must be read in the forwards for it."""

    goal: _Goal
    reading: AbstractContextManager[object]


@dataclass(frozen=True)
class _Benign:
    """What the model makes of the images themselves: stabilized neurons by layer, and the last layer's features."""

    neurons: dict[str, Tensor]
    features: Tensor


@dataclass(frozen=True)
class _Learnt:
    """What the pool tells of a model.

    layers : their names. neurons : those that were stabilized. unit : u.
    features, taken_for : of the pool's images, the last layer's outputs (P, neurons, positions) and the classes that
        the model takes them for, (P,).
    """

    layers: tuple[str, ...]
    neurons: StabilizedNeurons
    unit: Tensor
    features: Tensor
    taken_for: Tensor


def _learn(attack: Adaptive, model: nn.Module, logits: Logits, device: torch.device) -> _Learnt:
    """Go over the pool in parts, keeping sums, and of the last layer the features."""
    images, labels = attack.pool.images.to(device), attack.pool.labels.to(device)
    with torch.no_grad():
        classes = torch.cat([predictions(logits(some)) for some in images.split(_PAIRS_AT_A_TIME)])
    # What the model has no number for would be in every mean.
    images, labels = images[classes != NO_CLASS], labels[classes != NO_CLASS]
    if len(images) == 0:
        raise InputError("pool", len(classes), "images of which one at least has finite logits")
    layers = match_layers(model, attack.layers, images)
    pgd = GradientAttack(attack.threat, _POOL_STEPS, 2.5 * attack.threat.eps / _POOL_STEPS)
    parts, pairs = torch.arange(len(images), device=device).split(_PAIRS_AT_A_TIME), []
    meter = SensitivityMeter(device=device)
    summing: ActivationProbe[PairSums] = ActivationProbe(model, layers, lambda _, outputs: pair_sums(*outputs.chunk(2)))
    for rows in parts:
        pairs.append(torch.cat([images[rows], pgd(model, images[rows], labels[rows], keys=rows)]))
        with summing, torch.no_grad(), SharedNoise(model, pair_noise(len(rows))):
            logits(pairs[-1])
        meter.add(summing.outputs)
    layers = tuple(summing.outputs)  # in the order of the forward, so that the last is the last
    neurons = StabilizedNeurons.of(attack.stabilizing, meter.compute())

    change = term = torch.zeros((), dtype=torch.float64, device=device)
    features, taken_for = [], []
    reading_neurons = ActivationProbe(model, layers, neurons.read)
    reading_features: ActivationProbe[Tensor] = ActivationProbe(
        model, layers[-1], lambda _, outputs: outputs.chunk(2)[0].clone()
    )
    for rows, both in zip(parts, pairs, strict=True):
        with reading_neurons, reading_features, torch.no_grad(), SharedNoise(model, pair_noise(len(rows))):
            outputs = logits(both)
        change = change + margin(outputs, labels[rows].repeat(2)).view(2, -1).diff(dim=0).abs().sum()
        term = term + neurons.term(*split_pairs(reading_neurons.outputs)).sum()
        features.append(reading_features.outputs[layers[-1]])
        taken_for.append(predictions(outputs.chunk(2)[0]))
    unit = torch.where(term > 0.0, change / term, 0.0).float().nan_to_num()
    return _Learnt(layers, neurons, unit, torch.cat(features), torch.cat(taken_for))


def _state_of(model: nn.Module) -> object:
    """Changes with the model's weights, buffers and hooks: with what it computes, that is, unless its code does."""
    tensors = [(tensor.data_ptr(), tensor._version) for tensor in (*model.parameters(), *model.buffers())]
    hooks = [(*module._forward_pre_hooks, *module._forward_hooks) for module in model.modules()]
    return tensors, hooks


class _Study:
    """How the attacker uses what the pool tells of a model."""

    def __init__(self, learnt: _Learnt, model: nn.Module, weights: tuple[float, ...]) -> None:
        self._weights = weights
        self._neurons = learnt.neurons
        self._unit = learnt.unit
        self._features = learnt.features
        self._taken_for = learnt.taken_for
        self._reading_neurons = ActivationProbe(model, learnt.layers, learnt.neurons.read)
        self._reading_features: ActivationProbe[Tensor] = ActivationProbe(model, learnt.layers[-1])
        self._last = learnt.layers[-1]

    def look(self, logits: Logits, tally: Tally) -> _Benign:
        """Show the model the images as they are, which breaks those that it gets wrong by itself."""
        with self._reading_neurons as neurons, self._reading_features as features, torch.no_grad():
            rows = tally.left
            tally.judge(rows, tally.images, logits(tally.images))
        return _Benign(neurons.outputs, features.outputs[self._last])

    def aims(self, benign: _Benign, tally: Tally, restart: int) -> Iterator[_Aim]:
        """What to try, one after the other."""
        labels = tally.labels
        for weight in self._weights:
            if weight == 0.0:
                # Without hooks forwards are cheaper.
                yield _Aim(self._margin(labels), nullcontext())
            else:
                yield _Aim(self._margin_and_term(benign, labels, weight), self._reading_neurons)
        yield _Aim(self._likeness(benign, labels, restart), self._reading_features)

    def _margin(self, labels: Tensor) -> _Goal:
        def goal(outputs: Tensor, rows: Tensor, left: float) -> Tensor:  # noqa: ARG001
            return margin(outputs, labels[rows])

        return goal

    def _margin_and_term(self, benign: _Benign, labels: Tensor, weight: float) -> _Goal:
        def goal(outputs: Tensor, rows: Tensor, left: float) -> Tensor:
            before = {layer: values[rows] for layer, values in benign.neurons.items()}
            term = self._neurons.term(before, self._reading_neurons.outputs)
            return margin(outputs, labels[rows]) + left * weight * self._unit * term

        return goal

    def _likeness(self, benign: _Benign, labels: Tensor, restart: int) -> _Goal:
        # Without the matrix product, whose rounding would depend on what else is in the batch.
        distances = torch.cdist(
            benign.features.flatten(1), self._features.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
        )
        distances = distances.masked_fill(self._taken_for == labels[:, None], torch.inf)
        nearest = distances.argsort(dim=1, stable=True)[:, restart % len(self._features)]

        def goal(outputs: Tensor, rows: Tensor, left: float) -> Tensor:  # noqa: ARG001
            features = self._reading_features.outputs[self._last]
            return -(features - self._features[nearest[rows]]).square().mean((1, 2))

        return goal
