"""Intervene on pairs of one model: ablation, patching and contributions, as counts that are merged by addition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from distsens.logits import predictions
from distsens.networks import in_own_type
from distsens.precision import full_float32
from distsens.sensitivity import (
    ActivationProbe,
    PairForwards,
    Replacement,
    Selection,
    contributions,
    flipped_at,
    in_eval_mode,
    order_neurons,
    selected_count,
)

Kind = Literal["ablate", "patch", "contribute"]

ALL_LAYERS = "all layers"
# Outputs that are held of all layers of a batch of pairs, in bytes.
_HELD = 256 * 2**20


@dataclass(frozen=True)
class InterventionPlan:
    """What is done to which neurons.

    sensitivity : (neurons,) for every layer; neurons are taken in their order.
    means : (neurons,) for every layer, what the replacement ``mean`` sets.
    replacements : of ablated neurons.
    ratios : parts of each layer's neurons that are set, in (0, 1].
    draws : number of random orders that the sensitive neurons are compared with.
    steps : gradients of the contributions.
    """

    sensitivity: Mapping[str, Tensor]
    means: Mapping[str, Tensor]
    replacements: tuple[Replacement, ...] = ("benign", "zero", "mean")
    ratios: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5)
    draws: int = 10
    seed: int = 0
    steps: int = 8
    batch_size: int = 32

    def groups(self) -> dict[str, tuple[str, ...]]:
        """The layers that are set together: each by itself and, where there are several, all of them."""
        alone: dict[str, tuple[str, ...]] = {layer: (layer,) for layer in self.sensitivity}
        return alone if len(alone) < 2 else {**alone, ALL_LAYERS: tuple(alone)}

    def orders(self) -> Iterator[tuple[Selection, int, dict[str, Tensor]]]:
        """Each way to choose neurons: by sensitivity from the top, from the bottom, and at random; its draw."""
        kinds: list[tuple[Selection, int]] = [("top", 0), ("bottom", 0)]
        for how, draw in (*kinds, *(("random", draw) for draw in range(self.draws))):
            yield how, draw, {
                layer: order_neurons(layer, values, how, seed=_seed(self.seed, draw))
                for layer, values in self.sensitivity.items()
            }  # fmt: skip

    def counts(self, layer: str) -> list[int]:
        """How many neurons of a layer are set, ascending."""
        neurons = len(self.sensitivity[layer])
        return sorted({selected_count(neurons, ratio) for ratio in self.ratios})

    def patched(self, layer: str) -> list[int]:
        """How many neurons' adversarial values are let in."""
        return doublings(len(self.sensitivity[layer]))


def doublings(neurons: int) -> list[int]:
    """1, 2, 4, ... and all."""
    return [*(2**power for power in range(neurons.bit_length()) if 2**power < neurons), neurons]


class Ablated(NamedTuple):
    """A set of neurons that was ablated: of which layers, by what, and chosen how."""

    layer: str
    replacement: Replacement
    selection: Selection
    draw: int
    ratio: float


class Patched(NamedTuple):
    """An order in which adversarial values were let in, and the number of neurons that flipped an image; 0 if none."""

    layer: str
    selection: Selection
    draw: int
    neurons: int


@dataclass
class ContributionSums:
    """Of one layer: sums over pairs of each neuron's contribution and its square, (neurons,), and of the check.

    missed, change, total : sums of ``|sum_m c_im - change_i|``, ``|change_i|`` and ``|total_i|``.
    """

    contribution: Tensor
    squares: Tensor
    missed: float
    change: float
    total: float

    def merge(self, other: ContributionSums) -> None:
        """Add another shard's sums."""
        self.contribution = self.contribution + other.contribution
        self.squares = self.squares + other.squares
        self.missed += other.missed
        self.change += other.change
        self.total += other.total


@dataclass
class Intervened:
    """Counts over pairs.

    images : how many pairs. right, attacked, flipped : of them classified right when benign; right when adversarial;
        taken for something else when adversarial.
    correct : pairs whose adversarial image is classified right with those neurons ablated.
    first : images by the number of neurons that flipped them.
    contributions : by layer.
    """

    images: int = 0
    right: int = 0
    attacked: int = 0
    flipped: int = 0
    correct: dict[Ablated, int] = field(default_factory=dict)
    first: dict[Patched, int] = field(default_factory=dict)
    contributions: dict[str, ContributionSums] = field(default_factory=dict)

    def merge(self, other: Intervened) -> None:
        """Add another shard's counts."""
        self.images += other.images
        self.right += other.right
        self.attacked += other.attacked
        self.flipped += other.flipped
        for ablated, count in other.correct.items():
            self.correct[ablated] = self.correct.get(ablated, 0) + count
        for patched, count in other.first.items():
            self.first[patched] = self.first.get(patched, 0) + count
        for layer, sums in other.contributions.items():
            if layer in self.contributions:
                self.contributions[layer].merge(sums)
            else:
                self.contributions[layer] = sums


@full_float32()
def intervene(
    model: nn.Module,
    benign: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    plan: InterventionPlan,
    *kinds: Kind,
) -> Intervened:
    """Intervene on pairs (N, C, H, W) in [0, 1] with classes (N,), all on the model's device.

    ``kinds`` says in which ways, ``"ablate"``, ``"patch"`` and ``"contribute"``; without any in all three.
    """
    total = Intervened()
    wanted = kinds or get_args(Kind)
    orders = list(plan.orders()) if set(wanted) & {"ablate", "patch"} else []
    for group, layers in plan.groups().items() if orders else ():
        size = min(plan.batch_size, max(1, _HELD // _bytes_of_a_pair(model, layers, benign[:1])))
        for rows in torch.arange(len(benign)).split(size):
            forwards = PairForwards(model, layers, benign[rows], adversarial[rows])
            if "ablate" in wanted:
                _ablate(total, forwards, group, layers, labels[rows], orders, plan)
            if "patch" in wanted and group != ALL_LAYERS:
                _patch(total, forwards, group, orders, plan)
    for rows in torch.arange(len(benign)).split(plan.batch_size):
        for layer in plan.sensitivity if "contribute" in wanted else ():
            _contribute(total, model, layer, benign[rows], adversarial[rows], labels[rows], plan)
    plain = [
        PairForwards(model, (), benign[rows], adversarial[rows])
        for rows in torch.arange(len(benign)).split(plan.batch_size)
    ]
    before, after = (
        torch.cat([predictions(getattr(one, logits)) for one in plain])
        for logits in ("benign_logits", "adversarial_logits")
    )
    total.images = len(benign)
    total.right = int((before == labels).sum())
    total.attacked = int((after == labels).sum())
    total.flipped = int((before != after).sum())
    return total


def _ablate(
    total: Intervened,
    forwards: PairForwards,
    group: str,
    layers: tuple[str, ...],
    labels: Tensor,
    orders: list[tuple[Selection, int, dict[str, Tensor]]],
    plan: InterventionPlan,
) -> None:
    for how, draw, order in orders:
        for ratio in plan.ratios:
            neurons = {layer: order[layer][: selected_count(len(order[layer]), ratio)] for layer in layers}
            for replacement in plan.replacements:
                logits = forwards.ablated(neurons, replacement, plan.means)
                key = Ablated(group, replacement, how, draw, ratio)
                total.correct[key] = total.correct.get(key, 0) + int((predictions(logits) == labels).sum())


def _patch(
    total: Intervened,
    forwards: PairForwards,
    layer: str,
    orders: list[tuple[Selection, int, dict[str, Tensor]]],
    plan: InterventionPlan,
) -> None:
    # Only images that the attack flips can be asked how much of it flips them.
    flips = predictions(forwards.benign_logits) != predictions(forwards.adversarial_logits)
    for how, draw, order in orders:
        first = flipped_at(forwards, {layer: order[layer]}, plan.patched(layer))[flips]
        for neurons, count in zip(*(x.tolist() for x in first.unique(return_counts=True)), strict=True):
            key = Patched(layer, how, draw, neurons)
            total.first[key] = total.first.get(key, 0) + count


def _contribute(
    total: Intervened,
    model: nn.Module,
    layer: str,
    benign: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    plan: InterventionPlan,
) -> None:
    found = contributions(model, layer, benign, adversarial, labels, steps=plan.steps)
    each = found.neurons.double().cpu()
    change = found.change.double().cpu()
    sums = ContributionSums(
        each.sum(0),
        each.square().sum(0),
        float((each.sum(1) - change).abs().sum()),
        float(change.abs().sum()),
        float(found.total.double().abs().sum()),
    )
    if layer in total.contributions:
        total.contributions[layer].merge(sums)
    else:
        total.contributions[layer] = sums


def _bytes_of_a_pair(model: nn.Module, layers: tuple[str, ...], image: Tensor) -> int:
    probe = ActivationProbe(model, layers, read=lambda _, outputs: 2 * outputs.numel() * outputs.element_size())
    with in_eval_mode(model) as network, torch.no_grad(), probe:
        network(in_own_type(network, image))
    return max(1, sum(probe.outputs.values()))


def _seed(seed: int, draw: int) -> int:
    return seed * 1000 + draw
