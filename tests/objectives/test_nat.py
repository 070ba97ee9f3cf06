from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distsens.objectives import nat

LOGITS = st.lists(st.floats(-60, 60), min_size=3, max_size=3)


@settings(max_examples=60)
@given(benign=LOGITS, adversarial=LOGITS, label=st.integers(0, 2), alpha=st.floats(0, 1))
def test_loss_is_the_mixture_of_the_paper(
    benign: list[float], adversarial: list[float], label: int, alpha: float
) -> None:
    parts = nat(alpha).loss(
        torch.tensor([benign], dtype=torch.float64),
        torch.tensor([adversarial], dtype=torch.float64),
        torch.tensor([label]),
    )
    assert list(parts) == ["benign_ce", "adversarial_ce"]
    for name, weight, logits in (("benign_ce", alpha, benign), ("adversarial_ce", 1 - alpha, adversarial)):
        surprise = -math.log(math.exp(logits[label]) / sum(math.exp(z) for z in logits))
        assert parts[name].item() == pytest.approx(weight * surprise, rel=1e-9, abs=1e-12)


def test_both_halves_weigh_the_same_by_default() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    benign_ce, adversarial_ce = nat().loss(logits, logits, torch.tensor([1])).values()
    assert benign_ce.item() == adversarial_ce.item() > 0
