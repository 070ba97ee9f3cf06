from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import GradientAttack, Threat, attack_named, margin
from distsens.errors import InputError
from distsens.evaluation import LastIterate
from distsens.randomness import sample_keys
from tests.evaluation.digit_models import THREAT, part, stabilized

IMAGES, LABELS = part(1000, 1100)
PGD = GradientAttack(THREAT, steps=5, step_size=0.06)


def wrong(model: nn.Module, images: Tensor, labels: Tensor = LABELS) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1) != labels


@pytest.mark.parametrize(
    "attack",
    [
        PGD,
        replace(PGD, loss=margin),
        attack_named("mim", THREAT, steps=5),
        attack_named("cw_pgd", Threat("l2", 0.8), steps=5),
        attack_named("pgd", Threat("l1", 3.0), steps=5),
    ],
)
def test_one_attempt_is_the_gradient_attacks_own(attack: GradientAttack) -> None:
    model = stabilized()
    found = LastIterate(attack)(model, IMAGES, LABELS)
    at_once = wrong(model, IMAGES)
    expected = attack(model, IMAGES, LABELS, keys=sample_keys(torch.arange(len(IMAGES)), "restart", 0))
    margins = [margin(model(images), LABELS) for images in (IMAGES, expected)]
    torch.testing.assert_close(found.adversarial[at_once], IMAGES[at_once], rtol=0, atol=0)
    better = ~at_once & (margins[1] > margins[0] + 1e-4)
    torch.testing.assert_close(found.adversarial[better], expected[better], rtol=0, atol=1e-3)
    assert better.sum() > 0.8 * len(IMAGES)
    assert torch.equal(wrong(model, found.adversarial), at_once | wrong(model, expected))


def test_restarts_go_to_images_that_still_stand_and_are_counted() -> None:
    model = stabilized()
    clean, one, four = (
        wrong(model, IMAGES),
        LastIterate(PGD)(model, IMAGES, LABELS),
        LastIterate(replace(PGD, restarts=4))(model, IMAGES, LABELS),
    )
    broken_at_first, broken = wrong(model, one.adversarial), wrong(model, four.adversarial)
    assert torch.equal(broken_at_first & broken, broken_at_first)
    assert torch.equal(four.adversarial[broken_at_first], one.adversarial[broken_at_first])
    assert broken.sum() > broken_at_first.sum()  # starts differ
    assert set(one.evaluations[clean].tolist()) == {1}
    assert set(one.evaluations[~clean].tolist()) == {1 + 6}
    assert set(four.evaluations[~broken].tolist()) == {1 + 4 * 6}
    assert set(four.evaluations[broken & ~broken_at_first].tolist()) <= {13, 19, 25}


def test_an_image_is_attacked_alike_whatever_else_is_in_the_batch() -> None:
    model, keys = stabilized(), torch.arange(100) + 70
    attack = LastIterate(replace(PGD, restarts=3))
    together = attack(model, IMAGES, LABELS, keys=keys)
    rows = torch.tensor([70, 3, 41, 12])
    some = attack(model, IMAGES[rows], LABELS[rows], keys=keys[rows])
    torch.testing.assert_close(some.adversarial, together.adversarial[rows], rtol=0, atol=1e-3)
    assert some.evaluations.tolist() == together.evaluations[rows].tolist()


def test_no_images_are_no_trouble_and_keys_must_be_as_many() -> None:
    found = LastIterate(PGD)(stabilized(), IMAGES[:0], LABELS[:0])
    assert (len(found.adversarial), len(found.evaluations)) == (0, 0)
    with pytest.raises(InputError, match=r"^keys: "):
        LastIterate(PGD)(stabilized(), IMAGES, LABELS, keys=torch.arange(3))
