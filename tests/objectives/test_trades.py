from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distsens.objectives import trades

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=3, max_size=3)


def softmax(logits: list[float]) -> list[float]:
    total = sum(map(math.exp, logits))
    return [math.exp(z) / total for z in logits]


@settings(max_examples=60)
@given(benign=LOGITS, adversarial=LOGITS, label=st.integers(0, 2), beta=st.floats(0, 10))
def test_loss_is_equation_5_of_the_paper(
    benign: list[float], adversarial: list[float], label: int, beta: float
) -> None:
    p, q = softmax(benign), softmax(adversarial)
    parts = trades(beta).loss(torch.tensor([benign]), torch.tensor([adversarial]), torch.tensor([label]))
    assert list(parts) == ["benign_ce", "robust_kl"]
    assert parts["benign_ce"].item() == pytest.approx(-math.log(p[label]), rel=1e-4, abs=1e-5)
    divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert parts["robust_kl"].item() == pytest.approx(beta * divergence, rel=1e-4, abs=1e-4)


def test_gradient_flows_through_both_predictions() -> None:
    generator = torch.Generator().manual_seed(0)
    benign, adversarial = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 0])

    def loss(benign: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
        return sum(trades(6.0).loss(benign, adversarial, labels).values(), torch.zeros(()))

    assert torch.autograd.gradcheck(loss, (benign.requires_grad_(), adversarial.requires_grad_()))
    grads = torch.autograd.grad(trades(6.0).loss(benign, adversarial, labels)["robust_kl"].sum(), (benign, adversarial))
    assert all(gradient.abs().sum() > 0.1 for gradient in grads)
