"""When a training that says nothing is given up."""

from __future__ import annotations

import pytest

from distsens.distributed import training
from distsens.errors import InputError
from distsens.experiment import Workers


@pytest.mark.ray
def test_a_silent_training_is_given_up_only_when_the_cluster_has_long_been_too_small(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_SECONDS_OF_QUIET", 0.0)
    monkeypatch.setattr(training, "_SECONDS_FOR_A_LOST_MACHINE", 0.0)
    busy, lost = training._Quiet(Workers(num=2)), training._Quiet(Workers(num=3))
    for _ in range(3):
        busy.check()
    lost.check()
    with pytest.raises(InputError, match="the cluster has room for 2 workers"):
        lost.check()
    lost.ended()
    lost.check()
