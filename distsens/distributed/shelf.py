"""The data that the trials of a sweep share: read by an actor on the driver's machine, kept in the object store."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from distsens import assembly
from distsens.data import Extra
from distsens.distributed.training import share_data
from distsens.experiment import Experiment

_VARIANTS_KEPT = 4


@dataclass(frozen=True)
class SharedData:
    """A data set in the object store, as a training job takes it."""

    shape: tuple[int, int, int]
    classes: int
    arrays: dict[str, ray.ObjectRef]
    extra: Extra


class Shelf:
    """Reads the data that trials train on, and keeps the variants asked for last in the object store for others.

    What it lets go of lives on until the trials that train on it are done.
    """

    def __init__(self) -> None:
        self._shared: dict[tuple[str, int], SharedData] = {}

    def data(self, experiment: Experiment) -> SharedData:
        """The experiment's data, split by its seed."""
        key = experiment.data.model_dump_json(), experiment.seed
        if key in self._shared:
            self._shared[key] = self._shared.pop(key)  # to the end, as the latest
        else:
            dataset = assembly.load_data(experiment)
            self._shared[key] = SharedData(
                dataset.shape,
                len(dataset.classes),
                share_data(dataset),
                assembly.build_extra(experiment, dataset.extra),
            )
            if len(self._shared) > _VARIANTS_KEPT:
                del self._shared[next(iter(self._shared))]
        return self._shared[key]
