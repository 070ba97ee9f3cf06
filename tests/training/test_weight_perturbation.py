from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from distsens.training import perturbed_weights


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).to(
        memory_format=torch.channels_last
    )


def backward(model: nn.Module) -> None:
    model(torch.randn(4, 1, 3, 3)).square().sum().backward()


def test_every_weight_tensor_moves_up_its_gradient_by_gamma_times_its_length() -> None:
    model = network()
    backward(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with perturbed_weights(model, 0.01):
        for name, p in model.named_parameters():
            moved = p.detach() - before[name]
            if name in ("0.weight", "3.weight"):
                wanted = 0.01 * math.sqrt(before[name].square().sum())
                assert math.sqrt(moved.square().sum()) == pytest.approx(wanted, rel=1e-4)
                assert torch.cosine_similarity(moved.flatten(), p.grad.flatten(), dim=0) == pytest.approx(1.0)
            else:
                assert moved.count_nonzero() == 0


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_the_weights_are_what_they_were_bit_by_bit(fails: bool) -> None:
    model = network()
    backward(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    strides = [p.stride() for p in model.parameters()]
    identities = [id(p) for p in model.parameters()]
    try:
        with perturbed_weights(model, 1e6):
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert [p.stride() for p in model.parameters()] == strides
    assert [id(p) for p in model.parameters()] == identities
    assert all(p.requires_grad for p in model.parameters())


def test_a_weight_without_a_gradient_or_with_a_zero_one_stays() -> None:
    model = network()
    backward(model)
    model[0].weight.grad = None
    model[3].weight.grad.zero_()
    before = [p.detach().clone() for p in model.parameters()]
    with perturbed_weights(model, 0.5):
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_gradient_that_is_not_finite_shows_in_the_weights() -> None:
    model = network()
    backward(model)
    model[3].weight.grad[0, 0] = torch.inf
    with perturbed_weights(model, 0.5):
        assert not model[3].weight.isfinite().all()
    assert model[3].weight.isfinite().all()
