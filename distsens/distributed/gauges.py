"""What a run is doing, as gauges for Prometheus.

Ray's agent exports them beside its own, at the port of ``ray start --metrics-export-port``. Prometheus sees each name
with Ray's prefix, as ``ray_distsens_robust_accuracy``, and the tag ``run``.
"""

from __future__ import annotations

import time

from ray.util.metrics import Gauge

from distsens.training import EpochRecord

OF_EPOCHS = {
    "distsens_epoch": ("epoch", "Epochs finished."),
    "distsens_clean_accuracy": ("validation/clean_accuracy", "On validation, in [0, 1]."),
    "distsens_robust_accuracy": ("validation/robust_accuracy", "On validation, attacked, in [0, 1]."),
    "distsens_images_per_second": ("throughput/images_per_second", "Training images, all workers together."),
    "distsens_attack_share": ("throughput/attack_share", "Part of the step time that generating examples takes."),
}
"""By name: the epoch's metric, and what it means."""

LAST_CHECKPOINT = "distsens_last_checkpoint_timestamp_seconds"


class RunGauges:
    """The gauges of one run; set by its driver."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._of_epochs = {
            metric: Gauge(name, description, tag_keys=("run",)) for name, (metric, description) in OF_EPOCHS.items()
        }
        self._checkpoint = Gauge(LAST_CHECKPOINT, "Unix time of the newest checkpoint.", tag_keys=("run",))

    def epoch(self, record: EpochRecord, *, saved: bool) -> None:
        """An epoch has finished; ``saved`` says whether its checkpoint is stored."""
        for metric, gauge in self._of_epochs.items():
            if metric in record.metrics:
                gauge.set(record.metrics[metric], tags=self._tags)
        if saved:
            self._checkpoint.set(time.time(), tags=self._tags)
