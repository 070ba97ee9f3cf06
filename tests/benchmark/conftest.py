"""A subject small enough for tests."""

from __future__ import annotations

import pytest
import torch

from distsens.benchmark import QUICK, Subject


@pytest.fixture(scope="session")
def subject() -> Subject:
    """The small CNN, trained on 256 digits for a moment."""
    torch.set_num_threads(1)
    return Subject.train(QUICK[0], {}, torch.device("cpu"), "bf16")
