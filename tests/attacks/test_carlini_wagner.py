from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import CarliniWagner, Threat, margin

_ATTACK = CarliniWagner(Threat("l2", 100.0), steps=60, binary_search_steps=5, lr=0.05, initial_const=0.1)
Digits = tuple[Tensor, Tensor]


def test_with_confidence_examples_are_misclassified_by_that_margin(trained: nn.Module, digits: Digits) -> None:
    images, labels = digits[0][:30], digits[1][:30]
    plain, confident = (
        replace(_ATTACK, confidence=confidence).closest(trained, images, labels) for confidence in (0.0, 3.0)
    )
    found = confident.distances.isfinite() & (confident.distances > 0.0)
    assert found.sum() >= 20
    with torch.no_grad():
        assert (margin(trained(confident.examples), labels)[found] >= 3.0).all()
    assert (confident.distances[found] > plain.distances[found]).all()


def test_a_constant_too_small_grows_until_there_is_an_example(trained: nn.Module, digits: Digits) -> None:
    images, labels = digits[0][:30], digits[1][:30]
    attack = replace(_ATTACK, initial_const=1e-3)
    once, often = (
        replace(attack, binary_search_steps=runs).closest(trained, images, labels).distances for runs in (1, 6)
    )
    assert once.isinf().sum() > 20
    assert often.isfinite().all()


@pytest.mark.peers
def test_the_median_distance_is_that_of_foolbox(trained: nn.Module, digits: Digits) -> None:
    foolbox = pytest.importorskip("foolbox")
    images, labels = digits[0][:80], digits[1][:80]
    peer = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=_ATTACK.binary_search_steps,
        steps=_ATTACK.steps,
        stepsize=_ATTACK.lr,
        initial_const=_ATTACK.initial_const,
    )
    wrapped = foolbox.PyTorchModel(trained, bounds=(0, 1), device="cpu")
    examples, _, broken = peer(wrapped, images, foolbox.criteria.Misclassification(labels), epsilons=None)
    theirs = _ATTACK.threat.distance(images, examples)[broken].median().item()
    assert _ATTACK.closest(trained, images, labels).distances.median().item() <= 1.05 * theirs
