"""What each neuron contributes to the change of a logit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distsens.logits import plain_logits
from distsens.networks import in_eval_mode
from distsens.precision import full_float32
from distsens.sensitivity.intervene import Intervention, Overwriting
from distsens.sensitivity.probe import ActivationProbe
from distsens.sensitivity.shared_noise import same_noise


@dataclass(frozen=True)
class Contributions:
    """Per pair, what the neurons of a layer add to the change of the margin g = z_target - z_label.

    neurons : (N, neurons), the contribution of each neuron to g; their sum over neurons is compared with ``change``.
    change : (N,), how much g really changes when the whole layer says what it says to the adversarial image, and all
        that does not pass through the layer is as on the benign one.
    total : (N,), how much g really changes from the benign image to the adversarial one; the same where the layer is
        all that the logits depend on, as in a sequential network.
    """

    neurons: Tensor
    change: Tensor
    total: Tensor

    @property
    def gap(self) -> Tensor:
        """How far the sum of the contributions is from the real change, relative to it: one number over all pairs.

        ``sum_i |sum_m c_im - change_i| / sum_i |change_i|``; 0 if the contributions explain the change exactly.
        """
        missed = (self.neurons.double().sum(1) - self.change.double()).abs().sum()
        return missed / self.change.double().abs().sum().clamp(min=1e-30)


@full_float32()
def contributions(
    model: nn.Module,
    layer: str,
    benign: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    targets: Tensor | None = None,
    *,
    steps: int = 8,
) -> Contributions:
    """Gradient times difference, averaged along the way from the benign to the adversarial outputs of a layer.

    ``c_m = sum_positions (F'^m - F^m) * 1/steps sum_s dg/dF^m (F + (s - 1/2) / steps (F' - F))``. With one step it is
    gradient times difference at the middle of the way; with many, the integral, whose sum over neurons is the real
    change (completeness: Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017; for hidden neurons
    Dhamdhere et al., "How Important Is a Neuron?", ICLR 2019). So the error of the steps that were taken shows as
    :attr:`Contributions.gap`.

    Parameters
    ----------
    model : any classifier; it runs in eval mode and is left as it was, also its gradients.
    layer : name of the layer.
    benign, adversarial : (N, C, H, W) in [0, 1].
    labels : (N,) classes of the images.
    targets : (N,) classes that the margin runs to; by default what the adversarial image is taken for, and where that
        is its label still, the class with the next logit.
    steps : gradients taken, each a forward and a backward pass of the model.
    """

    def forward(images: Tensor) -> Tensor:
        with same_noise(network):
            return plain_logits(network, images)

    with torch.no_grad(), in_eval_mode(model) as network:
        with ActivationProbe[Tensor](network, layer) as probe:
            benign_logits = forward(benign)
        before = probe.outputs[layer]
        with probe:
            adversarial_logits = forward(adversarial)
        after = probe.outputs[layer]
        everything = torch.arange(before.shape[1], device=before.device)
        with Intervention(network, {layer: Overwriting(everything, after)}):
            patched_logits = forward(benign)
    if targets is None:
        targets = adversarial_logits.scatter(1, labels[:, None], -torch.inf).argmax(1)

    def margin(logits: Tensor) -> Tensor:
        return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)

    gradient = torch.zeros_like(before)
    for step in range(steps):
        point = torch.lerp(before, after, (step + 0.5) / steps).detach().requires_grad_()
        overwriting = Intervention(network, {layer: Overwriting(everything, point)})
        with torch.enable_grad(), in_eval_mode(model) as network, overwriting:
            (slope,) = torch.autograd.grad(margin(forward(benign)).sum(), point)
        gradient += slope / steps
    return Contributions(
        ((after - before) * gradient).sum(2),
        margin(patched_logits) - margin(benign_logits),
        margin(adversarial_logits) - margin(benign_logits),
    )
