from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import DeepFool, Norm, Threat

_NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


@_NORMS
def test_a_boundary_that_most_pixels_cannot_move_towards_is_reached_all_the_same(
    norm: Norm, trained: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    black_and_white = digits[0][:100].round()
    with torch.no_grad():
        labels = trained(black_and_white).argmax(1)
    assert DeepFool(Threat(norm, 1.0)).closest(trained, black_and_white, labels).distances.isfinite().all()


@_NORMS
def test_with_two_candidates_only_the_second_likeliest_class_counts(
    norm: Norm, trained: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits[0][:60], digits[1][:60]
    two, ten = (
        DeepFool(Threat(norm, 1.0), candidates=candidates).closest(trained, images, labels).distances
        for candidates in (2, 10)
    )
    assert ten.median() <= two.median()
    assert not torch.equal(two, ten)


@pytest.mark.peers
@_NORMS
def test_the_median_distance_is_that_of_foolbox(norm: Norm, trained: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    foolbox = pytest.importorskip("foolbox")
    images, labels = digits[0][:300], digits[1][:300]
    attack = DeepFool(Threat(norm, 1.0))
    peer = {"linf": foolbox.attacks.LinfDeepFoolAttack, "l2": foolbox.attacks.L2DeepFoolAttack}[norm]()
    wrapped = foolbox.PyTorchModel(trained, bounds=(0, 1), device="cpu")
    examples, _, broken = peer(wrapped, images, foolbox.criteria.Misclassification(labels), epsilons=None)
    theirs = attack.threat.distance(images, examples)[broken].median().item()
    assert attack.closest(trained, images, labels).distances.median().item() <= 1.05 * theirs
