from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distsens.objectives import mart

LOGITS = st.lists(st.floats(-100, 100), min_size=4, max_size=4)


def probabilities(logits: list[float]) -> list[Decimal]:
    exponentials = [Decimal(z).exp() for z in logits]
    return [e / sum(exponentials) for e in exponentials]


@settings(max_examples=60)
@example(benign=[0, 0, 0, 0], adversarial=[100, -100, -100, -100], label=1, beta=5)
@example(benign=[100, -100, 0, 0], adversarial=[-100, -100, 100, 100], label=1, beta=5)
@given(benign=LOGITS, adversarial=LOGITS, label=st.integers(0, 3), beta=st.floats(0, 10))
def test_loss_is_the_papers_computed_with_200_digits(
    benign: list[float], adversarial: list[float], label: int, beta: float
) -> None:
    with localcontext(prec=200):  # so that 1 - p is exact where p is all but 1
        p, q = probabilities(benign), probabilities(adversarial)
        rival = max(q[k] for k in range(4) if k != label)
        bce = -q[label].ln() - (1 - rival).ln()
        kl = sum(p[k] * (p[k].ln() - q[k].ln()) for k in range(4))
        weighted = Decimal(beta) * kl * (1 - p[label])
    parts = mart(beta).loss(
        torch.tensor([benign], dtype=torch.float64),
        torch.tensor([adversarial], dtype=torch.float64),
        torch.tensor([label]),
    )
    assert list(parts) == ["adversarial_bce", "robust_kl"]
    assert parts["adversarial_bce"].item() == pytest.approx(float(bce), rel=1e-9, abs=1e-12)
    assert parts["robust_kl"].item() == pytest.approx(float(weighted), rel=1e-9, abs=1e-10)


def test_gradient_flows_through_both_predictions_and_the_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    benign, adversarial = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 0])

    def loss(benign: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
        return sum(mart().loss(benign, adversarial, labels).values(), torch.zeros(()))

    assert torch.autograd.gradcheck(loss, (benign.requires_grad_(), adversarial.requires_grad_()))


def test_a_rival_that_is_all_but_certain_still_pulls() -> None:
    """In float32 1 - p of the rival is 0 here, and the gradient of its logarithm would be infinite or lost."""
    adversarial = torch.tensor([[0.0, 40.0, 0.0]]).requires_grad_()
    bce = mart().loss(torch.zeros(1, 3), adversarial, torch.tensor([0]))["adversarial_bce"]
    (gradient,) = torch.autograd.grad(bce.sum(), adversarial)
    # -log p_0 - log(p_0 + p_2) = 2 log(sum of exp) - z_0 - log(exp(z_0) + exp(z_2)), and all of the sum is z_1.
    assert gradient.tolist() == [pytest.approx([-1.5, 2.0, -0.5], rel=1e-5)]
