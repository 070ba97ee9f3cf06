from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distsens.attacks import Tally
from distsens.errors import InputError

IMAGES = torch.zeros(3, 1, 2, 2)
LABELS = torch.tensor([0, 1, 0])
ALL = torch.arange(3)


def logits(*margins: float) -> Tensor:
    """Of two classes, with these margins of the wrong one over the label's."""
    values = torch.zeros(len(margins), 2)
    for row, (value, label) in enumerate(zip(margins, LABELS, strict=False)):
        values[row, 1 - label] = value
    return values


def test_the_attempt_with_the_largest_margin_is_kept_until_one_succeeds() -> None:
    tally = Tally(IMAGES, LABELS, None)
    assert tally.judge(ALL, IMAGES + 0.1, logits(-2.0, -2.0, -2.0)).tolist() == [True] * 3
    assert tally.judge(ALL, IMAGES + 0.2, logits(-1.0, 3.0, -4.0)).tolist() == [True, False, True]
    assert tally.left.tolist() == [0, 2]
    tally.judge(tally.left, IMAGES[:2] + 0.3, logits(-1.5, -1.0)[:, [0, 1]], evaluations=5)
    found = tally.found()
    assert found.adversarial[:2, 0, 0, 0].tolist() == pytest.approx([0.2, 0.2])
    assert found.evaluations.tolist() == [7, 2, 7]


def test_before_the_first_attempt_an_image_stands_for_itself() -> None:
    found = Tally(IMAGES + 0.5, LABELS, None).found()
    assert torch.equal(found.adversarial, IMAGES + 0.5)
    assert found.evaluations.tolist() == [0, 0, 0]


def test_keys_are_positions_unless_they_are_given_one_for_each_image() -> None:
    assert Tally(IMAGES, LABELS, None).keys.tolist() == [0, 1, 2]
    assert Tally(IMAGES, LABELS, torch.tensor([5, 6, 7])).keys.tolist() == [5, 6, 7]
    with pytest.raises(InputError, match=r"keys: .*each of the 3 images"):
        Tally(IMAGES, LABELS, torch.tensor([5, 6]))
