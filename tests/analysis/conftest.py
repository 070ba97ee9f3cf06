"""A small network of the digits that an attack fools, and its pairs."""

from __future__ import annotations

import pytest
from torch import nn

from tests.analysis.digit_pairs import Digits, small_digits, trained


@pytest.fixture(scope="session")
def small() -> Digits:
    return small_digits()


@pytest.fixture(scope="session")
def other_seed() -> nn.Module:
    return trained(1)
