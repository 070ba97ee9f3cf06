from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distsens.objectives import alp

LOGITS = st.lists(st.floats(-60, 60), min_size=3, max_size=3)
BATCH = st.lists(st.tuples(LOGITS, LOGITS, st.integers(0, 2)), min_size=1, max_size=3)


@settings(max_examples=60)
@given(batch=BATCH, beta=st.floats(0, 10))
def test_loss_is_the_papers_over_a_mixed_batch(batch: list[tuple[list[float], list[float], int]], beta: float) -> None:
    cross_entropies: list[float] = []
    squares: list[float] = []
    for benign, adversarial, label in batch:
        halves = (benign, adversarial)
        cross_entropies += [-math.log(math.exp(half[label]) / sum(math.exp(z) for z in half)) for half in halves]
        squares += [(a - b) ** 2 for a, b in zip(benign, adversarial, strict=True)]
    mixed = sum(cross_entropies) / len(cross_entropies)
    pairing = beta * sum(squares) / len(squares)

    benign, adversarial, labels = (list(column) for column in zip(*batch, strict=True))
    parts = alp(beta).loss(
        torch.tensor(benign, dtype=torch.float64), torch.tensor(adversarial, dtype=torch.float64), torch.tensor(labels)
    )
    means = {name: values.mean().item() for name, values in parts.items()}
    assert list(means) == ["benign_ce", "adversarial_ce", "logit_pairing"]
    assert means["benign_ce"] + means["adversarial_ce"] == pytest.approx(mixed, rel=1e-9, abs=1e-12)
    assert means["logit_pairing"] == pytest.approx(pairing, rel=1e-9, abs=1e-12)


def test_both_predictions_are_pulled_together() -> None:
    benign, adversarial = torch.tensor([[1.0, 2.0]]).requires_grad_(), torch.tensor([[3.0, 2.0]]).requires_grad_()
    pairing = alp(1.0).loss(benign, adversarial, torch.tensor([0]))["logit_pairing"]
    down, up = torch.autograd.grad(pairing.sum(), (benign, adversarial))
    assert down.tolist() == [[-2.0, 0.0]]
    assert up.tolist() == [[2.0, 0.0]]
