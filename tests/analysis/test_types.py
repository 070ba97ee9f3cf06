"""A model of any type is measured, intervened on and judged by float32 images, nearly as it is in float32."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from distsens import analysis
from distsens.attacks import Threat, attack_named, pgd
from distsens.evaluation import Judgement, LastIterate, examine
from distsens.sensitivity import contributions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_models_are_measured_intervened_on_and_judged(dtype: torch.dtype) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        single = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)).eval()
        images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8)
    model, pixels, threat = copy.deepcopy(single).to(dtype), images / 255, Threat("linf", 0.1)
    labels = single(pixels).argmax(1)
    adversarial = pgd(single, pixels, labels, threat, steps=3, step_size=0.05)
    table, expected = (analysis.measure(one, pixels, adversarial) for one in (model, single))
    absolute, wanted = (torch.tensor(one["absolute"].to_numpy()) for one in (table, expected))
    torch.testing.assert_close(absolute, wanted, rtol=0.05, atol=1e-3)
    assert len(analysis.ablate(model, pixels, adversarial, labels, table, draws=2)) > 0
    assert len(analysis.probe(model, pixels)) == len(table)
    found = contributions(model, "0", pixels, adversarial, labels, steps=2)
    assert found.neurons.shape == (12, 4)
    judgement = Judgement(threat, {"pgd": LastIterate(attack_named("pgd", threat, steps=2))})
    examined = examine(model, images, labels, torch.arange(12), judgement, torch.device("cpu"))
    assert len(examined.ledger) == 12
