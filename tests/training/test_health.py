from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from distsens.sensitivity import LayerSensitivity
from distsens.training import TrainingStoppedError, check_classified, check_collapse, check_finite
from tests.training.runs import Run, digits_run

CHANCE = 0.1


def rectified() -> nn.Module:
    """Convolutions 0 and 2, hidden layer 5, logits 7."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def check(run: Run, accuracy: float) -> None:
    """Judge the network as it is now against how it began."""
    check_collapse(run.state.initial, run.validate().sensitivity, epoch=3, accuracy=accuracy, chance=CHANCE)


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_with_epoch_and_step(norm: float) -> None:
    with pytest.raises(TrainingStoppedError, match=r"NaN or infinite at epoch 4, step 17: lower training\.lr"):
        check_finite(norm, epoch=4, step=17)


@pytest.mark.parametrize("norm", [0.0, 1e30])
def test_a_finite_gradient_does_not(norm: float) -> None:
    check_finite(norm, epoch=4, step=17)


def test_a_training_that_diverges_stops_where_it_did() -> None:
    run = digits_run({"training": {"lr": 1000, "weight_decay": 100, "schedule": "constant", "gradient_clip": None}})
    with pytest.raises(TrainingStoppedError, match=r"NaN or infinite at epoch 1, step \d+:") as stopped:
        run.go()
    assert "\n" not in str(stopped.value)
    assert run.state.epoch == 0


def test_a_training_that_stabilizes_itself_to_death_stops() -> None:
    """Relative SNS at full weight from the first step: the cheapest way to be stable is to say nothing."""
    changes: dict[str, Any] = {
        "data": {"limit": None},
        "stabilize": {
            "weight": 50,
            "selection": "all",
            "measure": "relative",
            "warmup_start": 0,
            "warmup_end": 0,
            "refresh_steps": 1,
        },
        "training": {"epochs": 6, "batch_size": 32, "optimizer": "adamw", "lr": 1e-2, "ema_decay": None},
    }
    run = digits_run(changes, rectified)
    with pytest.raises(
        TrainingStoppedError, match=r"collapsed by epoch [1-5]: accuracy is at chance .* of layer "
    ) as it:
        run.go()
    assert "lower stabilize.weight" in str(it.value)
    assert "\n" not in str(it.value)
    last = run.state.history[-1].metrics
    assert last["validation/clean_accuracy"] < 0.15


def begun() -> Run:
    run = digits_run({"training": {"ema_decay": None}}, rectified)
    run.state.initial = run.validate().sensitivity
    return run


@pytest.mark.parametrize("layer", ["0", "2", "5"])
def test_a_layer_of_zeros_is_a_collapse_and_is_named(layer: str) -> None:
    run = begun()
    nn.init.zeros_(run.state.model.get_submodule(layer).weight)
    with pytest.raises(TrainingStoppedError, match=f"the sensitivity of layer {layer} fell to 0.0e"):
        check(run, CHANCE)


def test_a_young_network_at_chance_is_no_collapse() -> None:
    check(begun(), CHANCE)


def test_a_training_on_a_plateau_goes_on() -> None:
    state = digits_run({"training": {"lr": 1e-9, "schedule": "constant"}}, rectified).go()
    assert state.epoch == 3
    assert state.history[-1].metrics["validation/clean_accuracy"] < 0.2


def test_a_silent_layer_of_a_network_above_chance_is_robustness() -> None:
    run = begun()
    nn.init.zeros_(run.state.model.get_submodule("5").weight)
    check(run, 0.5)


def test_a_network_that_never_said_anything_did_not_fall_silent() -> None:
    zeros = torch.zeros(3, dtype=torch.float64)
    silent = {"a": LayerSensitivity(zeros, zeros, zeros)}
    check_collapse(silent, silent, epoch=1, accuracy=CHANCE, chance=CHANCE)


@pytest.mark.parametrize("vanished", ["absolute", "magnitude"])
def test_either_silence_is_a_collapse_only_at_chance(vanished: str) -> None:
    ones, small = torch.ones(3, dtype=torch.float64), torch.full((3,), 0.9e-2, dtype=torch.float64)
    before = {"a": LayerSensitivity(ones, ones, ones)}
    values = {"absolute": ones, "magnitude": ones, "relative": ones, vanished: small}
    after = {"a": LayerSensitivity(**values)}
    what = {"absolute": "sensitivity", "magnitude": "output"}[vanished]
    with pytest.raises(TrainingStoppedError, match=rf"epoch 2: .*\(10.0%\) and the {what} of layer a fell to 9.0e-03"):
        check_collapse(before, after, epoch=2, accuracy=0.1, chance=CHANCE)
    check_collapse(before, after, epoch=2, accuracy=0.13, chance=CHANCE)
    twice = {"a": LayerSensitivity(**{**values, vanished: 2 * small})}
    check_collapse(before, twice, epoch=2, accuracy=0.1, chance=CHANCE)


def test_a_network_that_has_no_numbers_for_too_many_images_is_stopped() -> None:
    check_classified(2, 40, "validation after epoch 3")
    with pytest.raises(TrainingStoppedError, match=r"NaN or infinite for 3 of 40 images, more than 5% \(validation a"):
        check_classified(3, 40, "validation after epoch 3")


def test_weights_that_are_no_numbers_stop_a_training_where_they_are_found() -> None:
    run = digits_run({"training": {"epochs": 1}})
    next(run.state.model.parameters()).data.fill_(torch.nan)
    with pytest.raises(TrainingStoppedError, match=r"has weights that are NaN at epoch 1, step 1 \(.*0.weight"):
        run.go()
