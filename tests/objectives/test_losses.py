from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distsens.objectives.losses import cross_entropy

LOGITS = st.lists(st.floats(-60, 60), min_size=4, max_size=4)


@settings(max_examples=60)
@given(logits=LOGITS, label=st.integers(0, 3), smoothing=st.floats(0, 0.99))
def test_smoothing_shares_a_part_of_the_labels_weight_among_all_classes(
    logits: list[float], label: int, smoothing: float
) -> None:
    total = sum(math.exp(z) for z in logits)
    expected = 0.0
    for k, z in enumerate(logits):
        target = smoothing / 4 + (1 - smoothing) * (k == label)
        expected -= target * math.log(math.exp(z) / total)
    found = cross_entropy(torch.tensor([logits], dtype=torch.float64), torch.tensor([label]), smoothing)
    assert found.shape == (1,)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
