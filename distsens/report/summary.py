"""The result of a training run, for scripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Summary:
    """What ``--summary`` writes, with these keys.

    status : ``"finished"``, ``"failed"`` or ``"interrupted"``.
    message : why it failed or was interrupted; null when finished.
    run : name of the run, as ``--resume`` takes it.
    storage : where the run's checkpoints are.
    published : where its best weights are published; null unless finished.
    mlflow_uri, mlflow_run_id, mlflow_model : where the run is tracked, and the URI of its model (null if none).
    experiment : all fields of the experiment.
    epochs : epochs finished.
    ended_early : after which of them training ended for want of progress, and why; null if it went to its last.
    alarm : line of the first alarm of catastrophic overfitting; null if there was none.
    best_epoch : of highest robust accuracy on validation (standard: clean accuracy); null before the first epoch.
    validation : ``clean_accuracy`` and ``robust_accuracy`` at the best epoch.
    test : ``images``, ``clean_accuracy``, ``fgsm_accuracy`` and ``pgd_accuracy`` (the recipe's ``test`` attack) of the
        best epoch, and ``not_finite``, the images whose logits were NaN or infinite, which count as wrong; null unless
        finished.
    sensitivity : per layer its mean over neurons on validation, ``{"absolute": {"first", "best"}, "relative": ...}``,
        after the first and after the best epoch.
    seconds : wall-clock time of this call.
    images_per_second, gradient_evaluations_per_second : mean over the epochs, all workers together.
    attack_share : part of the step time spent on generating examples, mean over the epochs.
    workers : number of workers at the end.
    """

    status: str
    message: str | None
    run: str
    storage: str
    published: str | None
    mlflow_uri: str
    mlflow_run_id: str
    mlflow_model: str | None
    experiment: dict[str, Any]
    epochs: int
    ended_early: str | None
    alarm: str | None
    best_epoch: int | None
    validation: dict[str, float] | None
    test: dict[str, float] | None
    sensitivity: dict[str, dict[str, dict[str, float]]]
    seconds: float
    images_per_second: float | None
    gradient_evaluations_per_second: float | None
    attack_share: float | None
    workers: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)
