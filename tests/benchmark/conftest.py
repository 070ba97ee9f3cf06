"""A subject small enough for tests."""

from __future__ import annotations

import pytest
import torch

from distsens.benchmark import QUICK, Subject


@pytest.fixture(scope="session")
def subject() -> Subject:
    """The small CNN, trained on 256 digits for a moment."""
    return Subject.train(QUICK[0], {}, torch.device("cpu"), "bf16")
