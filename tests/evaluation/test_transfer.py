from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import GradientAttack, Threat
from distsens.errors import InputError
from distsens.evaluation import LastIterate, Transfer
from tests.evaluation.digit_models import THREAT, part, plain, stabilized

IMAGES, LABELS = part(1000, 1100)
PGD = GradientAttack(THREAT, steps=5, step_size=0.06)


def wrong(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1) != LABELS


def test_examples_are_the_sources_and_the_verdict_is_the_models() -> None:
    source, model = stabilized(), plain()
    found = Transfer(source, PGD, THREAT)(model, IMAGES, LABELS)
    made = PGD(source, IMAGES, LABELS)
    at_once, broken = wrong(model, IMAGES), wrong(model, found.adversarial)
    alone = ~at_once & broken
    torch.testing.assert_close(found.adversarial[at_once], IMAGES[at_once], rtol=0, atol=0)
    torch.testing.assert_close(found.adversarial[alone], made[alone], rtol=0, atol=1e-3)
    assert torch.equal(broken, at_once | wrong(model, made))
    assert (wrong(source, found.adversarial) & ~broken).any()  # the source's own opinion does not count
    assert found.evaluations.tolist() == [1 if first else 2 for first in at_once]


def test_to_itself_a_model_transfers_what_breaks_it() -> None:
    model = stabilized()
    itself = Transfer(model, LastIterate(PGD), THREAT)(model, IMAGES, LABELS)
    directly = LastIterate(PGD)(model, IMAGES, LABELS)
    assert torch.equal(wrong(model, itself.adversarial), wrong(model, directly.adversarial))


@pytest.mark.parametrize("threat", [THREAT, Threat("l2", 0.5), Threat("l1", 2.0)])
def test_examples_from_farther_away_are_projected_into_the_ball(threat: Threat) -> None:
    farther = GradientAttack(replace(THREAT, eps=0.4), steps=3, step_size=0.2)
    found = Transfer(plain(), farther, threat)(stabilized(), IMAGES, LABELS)
    assert threat.distance(IMAGES, found.adversarial).max() <= threat.eps + 1e-5
    assert found.adversarial.min() >= 0.0
    assert found.adversarial.max() <= 1.0


def test_random_starts_belong_to_keys() -> None:
    keys, rows = torch.arange(100) + 7, torch.tensor([9, 2, 55])
    attack = Transfer(plain(), PGD, THREAT)
    together = attack(stabilized(), IMAGES, LABELS, keys=keys)
    some = attack(stabilized(), IMAGES[rows], LABELS[rows], keys=keys[rows])
    torch.testing.assert_close(some.adversarial, together.adversarial[rows], rtol=0, atol=1e-3)


def test_no_images_are_no_trouble_and_keys_must_be_as_many() -> None:
    found = Transfer(plain(), PGD, THREAT)(stabilized(), IMAGES[:0], LABELS[:0])
    assert (len(found.adversarial), len(found.evaluations)) == (0, 0)
    with pytest.raises(InputError, match=r"^keys: "):
        Transfer(plain(), PGD, THREAT)(stabilized(), IMAGES, LABELS, keys=torch.arange(3))
