from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import JudgingAttack, Threat, attack_named
from distsens.attacks.apgd import APGD
from distsens.attacks.deepfool import DeepFool
from distsens.attacks.fab import FAB
from distsens.attacks.square import Square
from distsens.errors import InputError

_THREAT = Threat("l2", 0.5)


class _Cut(nn.Module):
    """No gradient passes, or none that came from the images."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.how, self.linear = how, nn.Linear(108, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.how(x).flatten(1))
        return logits


@pytest.mark.parametrize(
    "cut",
    [Tensor.detach, lambda x: x.detach() + torch.zeros(1, requires_grad=True)],
    ids=["no graph", "a graph of its own"],
)
@pytest.mark.parametrize("attack", [attack_named("pgd", _THREAT), APGD(_THREAT), FAB(_THREAT), DeepFool(_THREAT)])
def test_an_attack_along_the_gradient_says_in_one_line_that_there_is_none(
    attack: JudgingAttack, cut: Callable[[Tensor], Tensor], images: Tensor
) -> None:
    network = _Cut(cut)
    labels = network(images).argmax(1)
    with pytest.raises(InputError, match=r"^model: got 'logits without a gradient'; [^\n]*$"):
        attack(network, images, labels)
    assert len(Square(_THREAT, queries=3)(network, images, labels).adversarial) == len(images)
