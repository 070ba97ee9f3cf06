"""The two ways in which adversarial training overfits, told from the history alone: a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distsens.attacks import GradientAttack
from distsens.training.health import CHANCE_MARGIN
from distsens.training.state import EpochRecord, best_epoch

TRAINING_ATTACK = "training_attack"
"""What the training attack is called among the attacks of a validation."""

_ROLLED_BACK_TO = "alarm/rolled_back_to"
_SENSITIVITY = "sensitivity/absolute/"


@dataclass(frozen=True)
class Alarm:
    """What counts as catastrophic overfitting, and what is done about it.

    action : ``"warn"`` says so and goes on, ``"stop"`` ends the training, ``"rollback"`` goes back to the best epoch
        once, and on from there with ``probe`` as the training attack.
    gap : how far accuracy under the training attack is above robust accuracy, at least.
    fall : robust accuracy is at most this part of the best epoch's.
    probe : the validation attack.
    """

    action: Literal["warn", "stop", "rollback"]
    gap: float
    fall: float
    probe: GradientAttack


def catastrophic_overfitting(
    history: Sequence[EpochRecord], alarm: Alarm, chance: float, counted_from: int = 0
) -> str | None:
    """Say that the last epoch withstands the training attack alone; None where it does not or nobody measured it.

    Training against a single step can lose the robustness to PGD within an epoch while accuracy under the training
    attack stays high (Wong et al., "Fast is better than free", ICLR 2020; Andriushchenko and Flammarion,
    "Understanding and Improving Fast Adversarial Training", NeurIPS 2020). Two signs have to meet, since sound runs
    show either alone: where eps is large the gap between the attacks is wide from the start, and while the learning
    rate is high robust accuracy comes and goes. The layer whose sensitivity rose most is named as evidence; it does not
    decide, because sensitivity multiplies in every young network.

    Parameters
    ----------
    history : of at least one epoch.
    alarm : the thresholds.
    chance : share of the most frequent class of the validation set. Robustness that was never above it cannot be lost.
    counted_from : epoch before which there is no alarm: while eps still grows, a network that has only met a smaller
        one loses and regains robustness against the full one.
    """
    *earlier, last = history
    best = best_epoch(earlier)
    trained = last.metrics.get(f"validation/{TRAINING_ATTACK}_accuracy")
    if last.epoch < counted_from or trained is None or best is None or best.robust_accuracy <= CHANCE_MARGIN * chance:
        return None
    robust = last.robust_accuracy
    if trained - robust < alarm.gap or robust > alarm.fall * best.robust_accuracy:
        return None
    return (
        f"catastrophic overfitting at epoch {last.epoch}: accuracy is {trained:.1%} under the training attack and "
        f"{robust:.1%} under the validation attack, after {best.robust_accuracy:.1%} at epoch {best.epoch}"
        f"{_steepest_rise(best, last)}"
    )


def robust_overfitting(
    history: Sequence[EpochRecord],
    patience: int,
    chance: float,
    counted_from: int = 0,
    selects: Literal["robust", "clean"] = "robust",
) -> str | None:
    """Say that the accuracy that selects has not risen for ``patience`` epochs; None where it has.

    Adversarial training goes on to raise robust accuracy on the training images long after that on others has begun to
    fall (Rice, Wong and Kolter, "Overfitting in adversarially robust deep learning", ICML 2020).

    Parameters
    ----------
    history : of at least one epoch.
    patience : epochs without a new best (see ``best_epoch``): by robust accuracy, or whatever ``selects``.
    chance : share of the most frequent class of the validation set. A plateau at chance is where training begins, so
        nothing is counted there.
    counted_from : epoch before which none is counted, nor is any before a rollback.
    selects : the accuracy that does, for the line.
    """
    best = best_epoch(history)
    if best is None or best.selection <= CHANCE_MARGIN * chance:
        return None
    if history[-1].epoch - max(best.epoch, counted_from, rolled_back(history) or 0) < patience:
        return None
    return f"{selects} accuracy has not risen above the {best.selection:.1%} of epoch {best.epoch}"


def rolled_back(history: Sequence[EpochRecord]) -> int | None:
    """The epoch whose weights were given up for those of an earlier one, if there is one."""
    return next((record.epoch for record in history if _ROLLED_BACK_TO in record.metrics), None)


def rollback_metrics(epoch: int) -> dict[str, float]:
    """What the record of an epoch says when training goes on from an earlier ``epoch`` instead."""
    return {_ROLLED_BACK_TO: float(epoch)}


def _steepest_rise(before: EpochRecord, after: EpochRecord) -> str:
    """Which layer's mean sensitivity grew most, and how many times; nothing where no layer is measured."""
    rises = {
        name.removeprefix(_SENSITIVITY): value / max(before.metrics[name], 1e-12)
        for name, value in after.metrics.items()
        if name.startswith(_SENSITIVITY)
    }
    if not rises:
        return ""
    layer = max(rises, key=lambda name: rises[name])
    return f"; sensitivity of layer {layer} is {rises[layer]:.1f} times what it was then"
