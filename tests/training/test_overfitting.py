from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distsens import assembly
from distsens.attacks import GradientAttack, Threat
from distsens.data import Dataset, ImageSet
from distsens.experiment import Experiment, merge
from distsens.training import (
    Alarm,
    EpochRecord,
    TrainingState,
    catastrophic_overfitting,
    robust_overfitting,
    rolled_back,
)
from tests.training.runs import JUMPY, Run, digits_run

ALARM = Alarm("warn", gap=0.2, fall=0.5, probe=GradientAttack(Threat("linf", 0.1), 10, 0.025))
CHANCE = 0.1


def record(epoch: int, robust: float, trained: float | None = None, clean: float = 0.9, **more: float) -> EpochRecord:
    metrics = {"validation/robust_accuracy": robust, "validation/clean_accuracy": clean, **more}
    if trained is not None:
        metrics["validation/training_attack_accuracy"] = trained
    return EpochRecord(epoch, {"sensitivity/absolute/conv": 0.25, "sensitivity/absolute/fc": 1.0, **metrics})


def history(*accuracies: tuple[float, float]) -> list[EpochRecord]:
    """Epochs with these accuracies under the validation and the training attack, after an untrained one."""
    return [record(epoch, *pair) for epoch, pair in enumerate([(0.1, 0.1), *accuracies])]


# What the alarm hears in a history.


@pytest.mark.parametrize(
    ("robust", "trained", "sounds"),
    [
        (0.25, 0.75, True),
        (0.26, 0.75, False),  # not far enough below the best
        (0.0, 0.75, True),
        (0.125, 0.325, True),
        (0.125, 0.32, False),  # falls to the training attack as well
        (0.0, 0.1, False),
    ],
)
def test_both_a_wide_gap_and_a_deep_fall_are_needed(robust: float, trained: float, sounds: bool) -> None:
    assert (catastrophic_overfitting(history((0.5, 0.6), (robust, trained)), ALARM, CHANCE) is not None) == sounds


def test_the_fall_is_from_the_best_epoch_however_long_ago() -> None:
    line = catastrophic_overfitting(history((0.8, 0.8), (0.5, 0.8), (0.4, 0.8)), ALARM, CHANCE)
    assert line is not None
    assert "epoch 3: accuracy is 80.0% under the training attack and 40.0% under the validation attack" in line
    assert "after 80.0% at epoch 1" in line
    assert "\n" not in line


def test_the_layer_whose_sensitivity_rose_most_is_named() -> None:
    rises = {"sensitivity/absolute/conv": 0.75, "sensitivity/absolute/fc": 2.0}
    line = catastrophic_overfitting([*history((0.8, 0.8)), record(2, 0.1, 0.8, **rises)], ALARM, CHANCE)
    assert line is not None
    assert line.endswith("sensitivity of layer conv is 3.0 times what it was then")
    unmeasured = [
        EpochRecord(one.epoch, {k: v for k, v in one.metrics.items() if "sens" not in k})
        for one in history((0.8, 0.8), (0.1, 0.8))
    ]
    line = catastrophic_overfitting(unmeasured, ALARM, CHANCE)
    assert line is not None
    assert line.endswith("after 80.0% at epoch 1")


def test_an_eps_that_is_too_large_is_no_alarm_and_neither_is_the_first_epoch() -> None:
    never_robust = history((0.12, 0.5), (0.01, 0.6), (0.0, 0.7))
    for epochs in range(1, len(never_robust) + 1):
        assert catastrophic_overfitting(never_robust[:epochs], ALARM, CHANCE) is None
    assert catastrophic_overfitting(never_robust, ALARM, chance=0.09) is not None


def test_an_eps_that_still_grows_is_no_alarm() -> None:
    records = history((0.8, 0.8), (0.1, 0.8))
    assert catastrophic_overfitting(records, ALARM, CHANCE, counted_from=3) is None
    assert catastrophic_overfitting(records, ALARM, CHANCE, counted_from=2) is not None


def test_an_attack_that_nobody_measured_raises_no_alarm() -> None:
    assert catastrophic_overfitting([*history((0.8, 0.8)), record(2, 0.1)], ALARM, CHANCE) is None


# What patience hears.


def waiting(*robust: float, patience: int = 3, counted_from: int = 0) -> list[bool]:
    """Whether training ends after epoch 1, 2, ..."""
    records = [record(epoch, value) for epoch, value in enumerate((0.0, *robust))]
    return [
        robust_overfitting(records[: 1 + epoch], patience, CHANCE, counted_from) is not None
        for epoch in range(1, len(records))
    ]


def test_training_ends_after_as_many_epochs_without_a_better_one_as_it_has_patience() -> None:
    assert waiting(0.3, 0.5, 0.4, 0.4, 0.4, 0.4) == [False, False, False, False, True, True]
    assert waiting(0.3, 0.5, 0.4, 0.4, 0.6, 0.5) == [False] * 6
    assert waiting(0.3, 0.2, patience=1) == [False, True]


def test_patience_waits_for_what_selects() -> None:
    clean = (0.1, 0.9, 0.8, 0.8, 0.8)
    records = [record(epoch, 0.0, **{"validation/selection": one}) for epoch, one in enumerate(clean)]
    found = robust_overfitting(records, 3, CHANCE, selects="clean")
    assert found == "clean accuracy has not risen above the 90.0% of epoch 1"
    assert robust_overfitting(records[:4], 3, CHANCE, selects="clean") is None


def test_epochs_before_full_strength_are_not_counted() -> None:
    assert waiting(0.5, 0.4, 0.4, 0.4, 0.4, 0.4, counted_from=3) == [False] * 5 + [True]


def test_epochs_before_a_rollback_are_not_counted() -> None:
    records = [record(epoch, value) for epoch, value in enumerate((0.0, 0.5, 0.4, 0.1, 0.2, 0.3, 0.4))]
    records[3] = replace(records[3], metrics={**records[3].metrics, "alarm/rolled_back_to": 1.0})
    assert rolled_back(records) == 3
    assert rolled_back(records[:3]) is None
    assert robust_overfitting(records[:6], 3, CHANCE) is None
    assert robust_overfitting(records, 3, CHANCE) == "robust accuracy has not risen above the 50.0% of epoch 1"


def test_a_plateau_at_chance_is_no_end() -> None:
    assert waiting(0.1, 0.1, 0.1, 0.09, patience=1) == [False] * 4
    assert waiting(0.1, 0.1, 0.3, 0.3, patience=1) == [False, False, False, True]
    assert robust_overfitting([record(0, 0.9)], 1, CHANCE) is None


@pytest.mark.parametrize(
    ("eps_warmup", "weight", "warmup_end", "epoch"),
    [(0, 0, 0.6, 0), (0.5, 0, 0.6, 5), (0.5, 1, 0.7, 7), (0.75, 1, 0.1, 8), (0.7, 0, 0, 7), (1, 0, 0, 10)],
)
def test_full_strength_is_reached_when_eps_and_sns_are(
    eps_warmup: float, weight: float, warmup_end: float, epoch: int
) -> None:
    experiment = Experiment.parse(
        {
            "training": {"epochs": 10, "eps_warmup": eps_warmup},
            "stabilize": {"weight": weight, "warmup_start": 0, "warmup_end": warmup_end},
        }
    )
    assert assembly.build_plan(experiment, 1000, np.zeros(10, dtype=np.int64)).full_strength == epoch


# Real trainings.

MARGIN = 16
FGSM: dict[str, Any] = {
    "seed": 5,
    "data": {"limit": None, "augment": []},
    "threat": {"eps": 0.06},
    "attack": {"steps": 1, "step_size": 0.06, "random_start": "none"},
    "validation": {"steps": 7},
    "alarm": {"fall": 0.6},
    "stabilize": {"weight": 0},
    "training": {
        "epochs": 6,
        "batch_size": 25,
        "optimizer": "adamw",
        "lr": 0.005,
        "schedule": "cosine",
        "warmup": 0.5,
        "weight_decay": 0,
        "eps_warmup": 0,
        "ema_decay": None,
        "gradient_clip": None,
    },
}
"""FGSM on the digits in the middle of a wide black frame.

Whatever the frame shows says nothing of the digit, but the gradient's sign turns it into a message that a network soon
learns to read instead: it overfits to FGSM within a few epochs, with most seeds, and with this one by far, however a
machine rounds. The steps shrink, so that it ends where it was going rather than wherever the last of them led.
"""


@pytest.fixture(scope="module")
def framed() -> Dataset:
    dataset = assembly.load_data(Experiment.parse({}))

    def frame(split: ImageSet, count: int) -> ImageSet:
        part = split.take(np.arange(min(count, len(split))))
        return replace(part, images=np.pad(part.images, ((0, 0), (0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))))

    return replace(
        dataset, train=frame(dataset.train, 400), validation=frame(dataset.validation, 144), test=frame(dataset.test, 1)
    )


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2, padding=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1600, 10),
    )


@dataclass
class Ended:
    """A training that has ended, why it did, and the files of each of its epochs."""

    run: Run
    reason: str | None
    files: dict[int, dict[str, bytes]]
    steps: dict[int, int] = field(default_factory=dict)

    @property
    def state(self) -> TrainingState:
        return self.run.state

    def values(self, name: str) -> list[float | None]:
        """A metric of all epochs."""
        return [one.metrics.get(name) for one in self.state.history]

    @property
    def alarmed(self) -> list[int]:
        return [one.epoch for one in self.state.history if one.alarm is not None]


def trained(framed: Dataset, changes: dict[str, Any], resumed: Ended | None = None, after: int = 0) -> Ended:
    """Train to the end; from the files that another training had ``after`` an epoch, if it is given."""
    run = digits_run(merge(FGSM, changes), network, framed)
    files = {} if resumed is None else {epoch: one for epoch, one in resumed.files.items() if epoch <= after}
    steps: dict[int, int] = {}
    if resumed is not None:
        torch.manual_seed(12345)  # another process has other random numbers
        run.state.load_files(files[after])

    def on_epoch(state: TrainingState, _: bool) -> None:
        files[state.epoch] = state.to_files()
        steps[state.epoch] = run.step.attack.steps

    return Ended(run, run.train(on_epoch, stored=files), files, steps)


def assert_same_end(one: Ended, other: Ended) -> None:
    """Bit for bit, but for what a clock measured."""
    torch.testing.assert_close(one.state.model.state_dict(), other.state.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(one.state.optimizer.state_dict(), other.state.optimizer.state_dict(), rtol=0, atol=0)
    assert one.reason == other.reason
    assert [lasting(record) for record in one.state.history] == [lasting(record) for record in other.state.history]


def lasting(record: EpochRecord) -> tuple[dict[str, float], str | None]:
    metrics = {name: value for name, value in record.metrics.items() if not name.startswith("throughput/")}
    return metrics, record.alarm


@pytest.fixture(scope="module")
def warned(framed: Dataset) -> Ended:
    return trained(framed, {})


@pytest.fixture(scope="module")
def back(framed: Dataset) -> Ended:
    return trained(framed, {"alarm": {"action": "rollback"}})


def test_fgsm_overfits_and_a_warning_says_so_while_training_goes_on(warned: Ended) -> None:
    assert warned.reason is None
    assert warned.state.epoch == 6
    robust, attacked = (warned.values(f"validation/{name}_accuracy") for name in ("robust", "training_attack"))
    first = warned.alarmed[0]
    assert robust[first] < 0.6 * max(robust[1:first])
    assert attacked[first] > robust[first] + 0.2
    assert attacked[6] > robust[6] + 0.3  # it stays overfitted
    assert warned.values("validation/overfitting_gap") == [a - r for a, r in zip(attacked, robust, strict=True)]
    assert f"at epoch {first}: " in warned.state.history[first].alarm


def test_an_alarm_that_goes_on_is_told_once(warned: Ended) -> None:
    plan = warned.run.plan
    sounding = [
        epoch
        for epoch in range(1, 7)
        if catastrophic_overfitting(warned.state.history[: epoch + 1], plan.alarm, plan.chance) is not None
    ]
    assert warned.alarmed == [epoch for epoch in sounding if epoch - 1 not in sounding]
    assert len(sounding) > len(warned.alarmed)


def test_stop_ends_the_training_with_the_epoch_that_overfits(framed: Dataset, warned: Ended) -> None:
    stopped = trained(framed, {"alarm": {"action": "stop"}})
    assert stopped.reason == "catastrophic overfitting"
    assert stopped.state.epoch == warned.alarmed[0]
    assert [lasting(one) for one in stopped.state.history] == [
        lasting(one) for one in warned.state.history[: stopped.state.epoch + 1]
    ]
    again = trained(framed, {"alarm": {"action": "stop"}}, resumed=stopped, after=stopped.state.epoch)
    assert again.steps == {}  # a run that was resumed after its end trains no more
    assert_same_end(again, stopped)


def test_rollback_takes_up_the_best_epoch_and_trains_on_with_the_validation_attack(back: Ended, warned: Ended) -> None:
    first = warned.alarmed[0]
    best = max(range(1, first), key=lambda epoch: warned.values("validation/robust_accuracy")[epoch])
    assert back.reason is None
    assert back.state.epoch == 6
    assert back.alarmed == [first]
    assert back.state.history[first].alarm.endswith(f"; back to epoch {best}, and on with the validation attack")
    assert back.values("alarm/rolled_back_to") == [float(best) if epoch == first else None for epoch in range(7)]
    assert back.files[first]["model.safetensors"] == back.files[best]["model.safetensors"]
    assert back.files[first]["model.safetensors"] != warned.files[first]["model.safetensors"]
    assert back.steps == {epoch: 1 if epoch <= first else 7 for epoch in range(7)}
    measured = [value is not None for value in back.values("validation/training_attack_accuracy")]
    assert measured == [epoch <= first for epoch in range(7)]
    assert back.state.best.robust_accuracy > warned.state.best.robust_accuracy
    assert back.values("validation/robust_accuracy")[6] > warned.values("validation/robust_accuracy")[6] + 0.2


@pytest.mark.parametrize("later", [-1, 0, 1])
def test_a_run_resumed_around_its_rollback_ends_exactly_where_the_uninterrupted_one_does(
    framed: Dataset, back: Ended, later: int
) -> None:
    resumed = trained(framed, {"alarm": {"action": "rollback"}}, resumed=back, after=back.alarmed[0] + later)
    assert_same_end(resumed, back)
    assert resumed.files == {epoch: resumed.files[epoch] for epoch in back.files}
    assert resumed.files[6]["model.safetensors"] == back.files[6]["model.safetensors"]


def test_a_rollback_takes_average_optimizer_and_stabilizer_along() -> None:
    files: dict[int, dict[str, bytes]] = {}
    run = digits_run(JUMPY)
    run.train(lambda state, _: files.update({state.epoch: state.to_files()}), stored=files)
    epoch = rolled_back(run.state.history)
    assert epoch is not None
    best = int(run.state.history[epoch].metrics["alarm/rolled_back_to"])
    before, after = digits_run(JUMPY).state, digits_run(JUMPY).state
    before.load_files(files[best])
    after.load_files(files[epoch])
    for part in ("model", "average", "optimizer", "stabilizer"):
        mine, theirs = (getattr(state, part).state_dict() for state in (after, before))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    torch.testing.assert_close(after.selected, before.selected)
    assert (len(before.history), len(after.history)) == (best + 1, epoch + 1)


PGD_5 = {"steps": 5, "step_size": 0.02, "random_start": "uniform"}


def test_pgd_on_the_same_images_raises_no_alarm(framed: Dataset) -> None:
    run = trained(framed, {"attack": PGD_5})
    assert run.alarmed == []
    assert run.values("validation/robust_accuracy")[6] > 0.5
    assert None not in run.values("validation/overfitting_gap")


def test_neither_does_an_eps_that_grows_nor_a_plateau(framed: Dataset) -> None:
    growing = trained(framed, {"attack": PGD_5, "training": {"eps_warmup": 0.7}, "alarm": {"gap": 0.01, "fall": 0.99}})
    assert growing.run.plan.full_eps == 5
    assert [epoch for epoch in growing.alarmed if epoch < 5] == []
    assert growing.values("validation/clean_accuracy")[6] > 0.7
    waiting = trained(framed, {"training": {"lr": 1e-9}})
    assert waiting.alarmed == []
    assert waiting.values("validation/clean_accuracy")[6] < 0.2


def test_an_attack_as_long_as_the_validation_attack_is_not_measured_twice() -> None:
    history = digits_run({"training": {"epochs": 1}}).go().history
    assert all("validation/training_attack_accuracy" not in one.metrics for one in history)


# Patience, on the digits as they are.


def impatient(changes: dict[str, Any], files: dict[str, bytes] | None = None) -> Ended:
    """A training that soon learns no more, because its learning rate drops to almost nothing."""
    short = {
        "data": {"limit": 200},
        "stabilize": {"weight": 0},
        "training": {
            "epochs": 12,
            "batch_size": 20,
            "schedule": "piecewise",
            "lr": 0.1,
            "milestones": [0.25],
            "drop": 1e-9,
            "ema_decay": None,
            "eps_warmup": 0,
            "patience": 2,
        },
    }
    run = digits_run(merge(short, changes))
    if files is not None:
        run.state.load_files(files)
    stored: dict[int, dict[str, bytes]] = {}
    return Ended(run, run.train(lambda state, _: stored.update({state.epoch: state.to_files()})), stored)


@pytest.fixture(scope="module")
def ended() -> Ended:
    return impatient({})


def test_a_training_that_learns_no_more_ends_early(ended: Ended) -> None:
    best = ended.state.best
    assert ended.state.epoch == best.epoch + 2 < 12
    assert ended.reason == f"robust accuracy has not risen above the {best.robust_accuracy:.1%} of epoch {best.epoch}"


def test_without_patience_it_does_not(ended: Ended) -> None:
    patient = impatient({"training": {"patience": None}})
    assert (patient.reason, patient.state.epoch) == (None, 12)


def test_it_waits_for_full_strength(ended: Ended) -> None:
    assert impatient({"training": {"eps_warmup": 0.75}}).state.epoch >= 9 + 2 > ended.state.epoch


@pytest.mark.parametrize("before", [0, 1])
def test_a_resumed_training_ends_as_early(ended: Ended, before: int) -> None:
    resumed = impatient({}, ended.files[ended.state.epoch - before])
    assert len(resumed.files) == before
    assert_same_end(resumed, ended)
