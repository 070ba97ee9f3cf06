from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import threat
from distsens.benchmark import Subject
from distsens.benchmark import step as module
from distsens.training import TrainingStep


@pytest.fixture
def networks(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Every network that is taken from the subject to be trained, in order."""
    taken: list[nn.Module] = []

    def fresh(self: Subject) -> nn.Module:
        taken.append(original(self))
        return taken[-1]

    original = Subject.fresh
    monkeypatch.setattr(Subject, "fresh", fresh)
    return taken


def test_the_plain_trades_loop_takes_the_same_step_as_ours_in_float32(
    subject: Subject, networks: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both draw this instead of normal noise; it points into [0, 1], where ours but not the plain loop clips."""
    noise = 0.5 - subject.batch(0)[0]
    monkeypatch.setattr(module.torch, "randn_like", lambda _: noise)
    monkeypatch.setattr(threat, "normal", lambda *_: noise)
    changes: dict[str, Any] = {"objective": {"name": "trades", "beta": 6.0}, "attack": {"random_start": "normal"}}
    module.own_step(subject, changes)(0)
    module._plain_trades(subject)(0)
    before = [p.detach().clone() for p in subject.network.parameters()]
    ours, plain = ([p.detach() for p in network.parameters()] for network in networks)
    for one, other, start in zip(ours, plain, before, strict=True):
        assert not torch.equal(one, start)
        # A gradient of about zero may have either sign: single pixels of the examples differ.
        assert (one - other).norm() < 0.01 * (one - start).norm()


def test_after_the_first_run_a_step_with_sns_has_neurons_to_stabilize(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms: list[Tensor | None] = []
    original = TrainingStep._forward

    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        result = original(self, *arguments, **options)
        terms.append(result[1])
        return result

    monkeypatch.setattr(TrainingStep, "_forward", forward)
    step = module.own_step(subject, {"stabilize": {"weight": 1.0}}, sns_weight=1.0)
    step(0)
    step(1)
    assert terms[0] is None
    assert terms[1] is not None
    assert terms[1].mean() > 0
