"""Our attacks are as strong as the same attacks of other libraries; peers.py says which, and by what settings.

Quick tests compare with the numbers in peers.json, drills with the libraries themselves.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.attacks.peers import COMMAND, COMPARISONS, RESTARTS, Comparison, pgd, stored, success

_QUICK = {name: comparison for name, comparison in COMPARISONS.items() if comparison.quick}


@pytest.mark.parametrize(("name", "comparison"), _QUICK.items(), ids=_QUICK)
def test_ours_is_as_strong_as_the_peer_was(name: str, comparison: Comparison) -> None:
    comparison.check(stored()[name])


def test_restarts_succeed_more_often_than_one_start() -> None:
    one = success(pgd, replace(RESTARTS, restarts=1), 3)
    assert success(pgd, RESTARTS, 3) > one


@pytest.mark.drill
@pytest.mark.peers
@pytest.mark.parametrize(("name", "comparison"), COMPARISONS.items(), ids=COMPARISONS)
@pytest.mark.filterwarnings("ignore:there are .* points with zero gradient")
def test_ours_is_as_strong_as_the_peer_is_and_the_peer_as_it_was(name: str, comparison: Comparison) -> None:
    pytest.importorskip(comparison.library)
    theirs = comparison.theirs()
    comparison.check(theirs)
    tolerance = min(comparison.below, comparison.above)
    assert stored()[name] == pytest.approx(theirs, abs=tolerance), f"renew peers.json: {COMMAND}"


def test_every_number_that_is_stored_is_compared_with() -> None:
    assert stored().keys() == COMPARISONS.keys()
