"""What an objective is: which examples it needs, how they are made, and what the loss is on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from distsens.attacks import AttackLoss, GradientAttack, cross_entropy, kl_divergence
from distsens.attacks.view import attack_view
from distsens.errors import InputError

LossParts = dict[str, Tensor]
"""Parts of the loss by name, (N,) values each; the loss of an image is their sum."""


@dataclass(frozen=True)
class Objective:
    """A training loss over benign images x and adversarial twins x'.

    loss : from benign logits (N, K), adversarial logits (N, K) and labels (N,) to the parts; logits that the objective
        does not use are None.
    uses_benign, uses_adversarial : which logits the loss needs, so that no other half is forwarded.
    against_benign : the attack raises the divergence from the benign prediction instead of the cross-entropy.
    """

    loss: Callable[[Tensor | None, Tensor | None, Tensor], LossParts]
    uses_benign: bool
    uses_adversarial: bool
    against_benign: bool = False

    def generate(
        self, attack: GradientAttack, model: nn.Module, images: Tensor, labels: Tensor, keys: Tensor
    ) -> Tensor:
        """Adversarial twins x' of the images (N, C, H, W) for this objective.

        Raises
        ------
        InputError : the attack cannot raise the divergence from the benign prediction: it starts at the image itself,
            where that is least and has no gradient but rounding noise, or it has a loss of its own.
        """
        if not self.against_benign:
            return attack(model, images, labels, loss=cross_entropy, keys=keys)
        if attack.random_start == "none":
            allowed = "uniform or normal: the divergence from the benign prediction has no gradient at the image itself"
            raise InputError("attack.random_start", "none", f"{allowed}, where fgsm, bim and mim start")
        if attack.loss is not None:
            allowed = "none: this objective's examples raise the divergence from the benign prediction"
            raise InputError("attack.loss", getattr(attack.loss, "__name__", repr(attack.loss)), allowed)
        with attack_view(model, precision=attack.precision) as logits:
            benign = logits(images).detach()
        divergence: AttackLoss = kl_divergence
        return attack(model, images, benign, loss=divergence, keys=keys)


def needed(logits: Tensor | None) -> Tensor:
    """Logits that the objective declared it uses."""
    if logits is None:
        raise ValueError("the objective's logits were not computed")
    return logits
