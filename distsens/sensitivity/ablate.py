"""Do sensitive neurons decide? Undo the attack in some neurons alone, or let it act through some neurons alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from distsens.errors import InputError
from distsens.logits import plain_logits, predictions
from distsens.networks import in_eval_mode
from distsens.precision import full_float32
from distsens.sensitivity.intervene import Intervention, constant_neurons, take_neurons
from distsens.sensitivity.probe import ActivationProbe
from distsens.sensitivity.shared_noise import same_noise

Replacement = Literal["benign", "zero", "mean"]


class PairForwards:
    """Forwards of pairs in which some neurons are overwritten.

    Parameters
    ----------
    model : any classifier; it runs in eval mode and is left as it was.
    layers : names of the layers whose neurons may be overwritten. Their outputs on the pairs are held: memory grows
        with the pairs times the layers, so give a batch at a time.
    benign, adversarial : (N, C, H, W) in [0, 1].
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], benign: Tensor, adversarial: Tensor) -> None:
        self._model = model
        self._benign, self._adversarial = benign, adversarial
        self._benign_outputs, self.benign_logits = self._read(layers, benign)
        self._adversarial_outputs, self.adversarial_logits = self._read(layers, adversarial)

    def ablated(
        self,
        neurons: Mapping[str, Tensor],
        replacement: Replacement = "benign",
        means: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits (N, K) of the adversarial images with some neurons of each named layer set to something else.

        Parameters
        ----------
        neurons : (k,) numbers for each layer.
        replacement : ``"benign"``, what the neuron says, position by position, to the benign image; ``"zero"``; or
            ``"mean"``, its mean output over benign images and positions.
        means : for ``"mean"``, (neurons,) for each layer; :attr:`NeuronStatistics.output`.
        """
        match replacement:
            case "benign":
                layers = take_neurons(self._benign_outputs, neurons)
            case "zero":
                zeros = {
                    layer: self._benign_outputs[layer].new_zeros(output) for layer, output in self._sizes().items()
                }
                layers = constant_neurons(zeros, neurons)
            case "mean":
                if means is None:
                    raise InputError("means", None, "give the neurons' means, which replace them")
                layers = constant_neurons(means, neurons)
            case _:
                raise InputError("replacements", replacement, f"allowed are {', '.join(get_args(Replacement))}")
        return self._forward(self._adversarial, Intervention(self._model, layers))

    def patched(self, neurons: Mapping[str, Tensor]) -> Tensor:
        """Logits (N, K) of the benign images where some neurons say what they say to the adversarial twins."""
        return self._forward(self._benign, Intervention(self._model, take_neurons(self._adversarial_outputs, neurons)))

    def _sizes(self) -> dict[str, int]:
        return {layer: output.shape[1] for layer, output in self._benign_outputs.items()}

    def _read(self, layers: Sequence[str], images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        with ActivationProbe[Tensor](self._model, layers) as probe:
            logits = self._forward(images)
        return probe.outputs, logits

    @full_float32()
    def _forward(self, images: Tensor, around: AbstractContextManager[object] | None = None) -> Tensor:
        with in_eval_mode(self._model) as network, torch.no_grad(), same_noise(network):
            if around is None:
                return plain_logits(network, images)
            with around:
                return plain_logits(network, images)


def flipped_at(forwards: PairForwards, orders: Mapping[str, Tensor], counts: Sequence[int]) -> Tensor:
    """How many adversarial values it takes: (N,) the first count that changes what the benign image is taken for.

    The neurons of each named layer are patched in the order given, the first ``count`` of them for each of the
    ``counts``; 0 stands for images that none of them changes. A later count may change the prediction back: what is
    given is the first crossing, not a minimum over subsets of neurons.
    """
    before = predictions(forwards.benign_logits)
    first = torch.zeros_like(before)
    for count in counts:
        logits = forwards.patched({layer: order[:count] for layer, order in orders.items()})
        changed = predictions(logits) != before
        first = torch.where((first == 0) & changed, count, first)
        if bool((first > 0).all()):
            break
    return first
