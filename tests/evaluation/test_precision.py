"""While a classifier is judged, float32 is float32, on a GPU too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import GradientAttack, Square, Threat
from distsens.data import to_pixels
from distsens.evaluation import Judgement, LastIterate, examine, full_float32, inspect, masking_checks

THREAT = Threat("linf", 0.1)
ATTACK = GradientAttack(THREAT, steps=2, step_size=0.05)
IMAGES = torch.arange(4 * 64, dtype=torch.uint8).view(4, 1, 8, 8)
LABELS = torch.zeros(4, dtype=torch.int64)


def settings() -> tuple[bool, str]:
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


class Watched(nn.Module):
    """A classifier that notes in which precision its forwards run."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)
        nn.init.constant_(self.last.bias[:1], 10.0)  # right on all of the images
        self.seen: set[tuple[bool, str]] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add(settings())
        logits: Tensor = self.last(images.flatten(1))
        return logits


def judge(model: nn.Module) -> object:
    judgement = Judgement(THREAT, {"pgd": LastIterate(ATTACK)}, corruptions=[("fog", 1)])
    return examine(model, IMAGES, LABELS, torch.arange(4), judgement, torch.device("cpu"))


def check_masking(model: nn.Module) -> object:
    return masking_checks(model, to_pixels(IMAGES), LABELS, ATTACK, gradient_free=Square(THREAT, queries=2), seed=0)


@pytest.mark.parametrize(
    "look", [judge, check_masking, lambda model: inspect(model, to_pixels(IMAGES), LABELS, 10)], ids=range(3)
)
def test_every_look_at_a_classifier_is_in_full_float32_and_leaves_the_settings(
    look: Callable[[nn.Module], object],
) -> None:
    model, before = Watched().eval(), settings()
    try:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("medium")
        look(model)
        assert model.seen == {(False, "highest")}
        assert settings() == (True, "medium")
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_convolution_on_a_gpu_is_as_exact_as_float32_can_be() -> None:
    torch.manual_seed(0)
    convolution, images = nn.Conv2d(64, 64, 3).cuda(), torch.rand(8, 64, 16, 16, device="cuda")
    with full_float32(), torch.no_grad():
        found = convolution(images).double()
        exact = convolution.double()(images.double())
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()
