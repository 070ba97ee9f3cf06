"""When a silence is taken to mean that the cluster has become too small, and when it is given up."""

from __future__ import annotations

import pytest

from distsens.distributed import patience
from distsens.distributed.patience import MachinesLostError, Patience
from distsens.experiment import Workers


@pytest.mark.ray
def test_a_silence_is_given_up_only_when_the_cluster_has_long_been_too_small_and_that_is_said(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_SECONDS_OF_QUIET", 0.0)
    monkeypatch.setattr(patience, "_SECONDS_FOR_A_LOST_MACHINE", 0.0)
    said: list[str] = []
    busy, lost = Patience(Workers(num=3), say=said.append), Patience(Workers(num=4), say=said.append)
    for _ in range(3):
        busy.check()
    assert said == []
    lost.check()
    too_small = "machines are lost: the cluster has room for 3 workers of 1 CPU each, and 4 are needed; "
    assert said == [f"{too_small}waiting 0 minutes for others"]
    with pytest.raises(MachinesLostError, match=f"^{too_small}no others came within 0 minutes$"):
        lost.check()
    lost.heard()
    lost.check()
    assert len(said) == 2
