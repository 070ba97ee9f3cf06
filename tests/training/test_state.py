from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.parameter import Parameter

from distsens.sensitivity import LayerSensitivity
from distsens.training import (
    STATE,
    WEIGHTS,
    EpochRecord,
    TrainingState,
    load_weights,
    stored_history,
    weights_to_bytes,
)
from tests.training.runs import digits_run, smooth


def dropping() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(288, 10))


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


def lasting(state: TrainingState) -> list[dict[str, float]]:
    """The history without what a clock measured."""
    return [
        {name: value for name, value in record.metrics.items() if not name.startswith("throughput/")}
        for record in state.history
    ]


def assert_same(left: object, right: object) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


ADAMW = {"training": {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.01}}
COSINE = {
    "training": {"schedule": "cosine", "warmup": 0.2, "lr": 0.1, "batch_norm": "separate", "awp_gamma": 0.01},
    "stabilize": {"measure": "relative"},
}
FREE = {"objective": {"name": "free_at", "replays": 2}, "training": {"lr": 0.1}}
TRADES = {"objective": {"name": "trades"}, "training": {"ema_decay": None}, "attack": {"random_start": "normal"}}
WITHOUT_SNS = {"stabilize": {"weight": 0}, "training": {"momentum": 0}}


@pytest.mark.parametrize("stopped_after", [1, 2])
@pytest.mark.parametrize(
    ("changes", "network"),
    [
        pytest.param({}, smooth, id="SGD, SNS and EMA"),
        pytest.param(ADAMW, dropping, id="AdamW and dropout"),
        pytest.param(COSINE, normed, id="separate batch norm, AWP and relative SNS"),
        pytest.param(TRADES, smooth, id="TRADES without EMA"),
        pytest.param(WITHOUT_SNS, smooth, id="without SNS and momentum"),
        pytest.param(FREE, smooth, id="free adversarial training"),
    ],
)
def test_a_resumed_run_ends_exactly_where_the_uninterrupted_one_does(
    changes: dict[str, Any], network: Callable[[], nn.Module], stopped_after: int
) -> None:
    checkpoints: list[dict[str, bytes]] = []
    straight = digits_run(changes, network).go(lambda state, _: checkpoints.append(state.to_files()))

    resumed_run = digits_run(changes, network)
    torch.manual_seed(12345)  # another process has other random numbers
    resumed_run.state.load_files(checkpoints[stopped_after])
    assert resumed_run.state.epoch == stopped_after
    told: list[tuple[int, bool]] = []
    resumed = resumed_run.go(lambda state, best: told.append((state.epoch, best)))

    assert [epoch for epoch, _ in told] == list(range(stopped_after + 1, 4))
    assert_same(dict(resumed.model.state_dict()), dict(straight.model.state_dict()))
    assert_same(dict(resumed.classifier.state_dict()), dict(straight.classifier.state_dict()))
    assert_same(resumed.optimizer.state_dict(), straight.optimizer.state_dict())
    assert_same(resumed.selected, straight.selected)
    assert lasting(resumed) == lasting(straight)
    assert resumed.best.epoch == straight.best.epoch
    if straight.stabilizer:
        assert_same(resumed.stabilizer.state_dict(), straight.stabilizer.state_dict())
        assert_same(resumed.stabilizer.selected, straight.stabilizer.selected)


def test_layers_that_draw_random_numbers_draw_others_in_every_epoch() -> None:
    seeds = []
    run = digits_run({"stabilize": {"weight": 0}}, dropping)
    run.state.model.register_forward_pre_hook(
        lambda module, _: seeds.append(torch.initial_seed()) if module.training else None
    )
    run.go()
    assert len(set(seeds)) == 3
    assert seeds == [seed for seed in dict.fromkeys(seeds) for _ in range(8)]


def test_a_loaded_state_is_the_saved_one() -> None:
    saved = digits_run({"training": {"epochs": 2}}).go()
    loaded = digits_run({"training": {"epochs": 2}, "seed": 1}).state
    loaded.load_files(saved.to_files())
    assert_same(dict(loaded.model.state_dict()), dict(saved.model.state_dict()))
    assert_same(dict(loaded.average.state_dict()), dict(saved.average.state_dict()))
    assert loaded.history == saved.history
    for mine, theirs in (
        (loaded.initial, saved.initial),
        (loaded.history[-1].sensitivity, saved.history[-1].sensitivity),
    ):
        assert mine.keys() == theirs.keys()
        for layer, values in mine.items():
            assert_same(vars(values), vars(theirs[layer]))


def test_files_are_a_safetensors_classifier_and_a_state_without_pickled_code() -> None:
    state = digits_run({"training": {"epochs": 1}}).go()
    files = state.to_files()
    assert set(files) == {WEIGHTS, STATE}
    network = smooth()
    load_weights(network, files[WEIGHTS])
    assert_same(dict(network.state_dict()), dict(state.classifier.state_dict()))
    # load_files opens it with weights_only=True, which refuses everything but plain values and tensors.
    digits_run({"training": {"epochs": 1}}).state.load_files(files)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(smooth(), weights_to_bytes(nn.Linear(2, 2)))


def test_weights_keep_their_values_whatever_their_memory_layout() -> None:
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    other = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    load_weights(other, weights_to_bytes(network))
    assert_same(dict(other.state_dict()), dict(network.state_dict()))
    assert other.weight.is_contiguous(memory_format=torch.channels_last)


def test_tied_weights_can_be_saved() -> None:
    def tied() -> nn.Module:
        network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        network[1].weight = network[0].weight
        return network

    network, other = tied(), tied()
    load_weights(other, weights_to_bytes(network))
    assert_same(dict(other.state_dict()), dict(network.state_dict()))
    assert set(safetensors.torch.load(weights_to_bytes(network))) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def bare() -> TrainingState:
    weight = Parameter(torch.zeros(1))
    return TrainingState(nn.ParameterList([weight]), torch.optim.SGD([weight], lr=1))


METRICS = st.dictionaries(st.text(min_size=1), st.floats(allow_nan=False), max_size=5)


@given(history=st.lists(METRICS, min_size=1, max_size=4))
def test_a_history_survives_the_files_exactly(history: list[dict[str, float]]) -> None:
    layer = LayerSensitivity(*(torch.tensor([0.1, 1e-300], dtype=torch.float64) for _ in range(3)))
    state, loaded = bare(), bare()
    state.history = [EpochRecord(epoch, metrics, {"a": layer}) for epoch, metrics in enumerate(history)]
    loaded.load_files(state.to_files())
    assert loaded.history == state.history == stored_history(state.to_files())
    assert_same(vars(loaded.history[-1].sensitivity["a"]), vars(layer))


def test_an_alarm_survives_the_files() -> None:
    state, loaded = bare(), bare()
    state.history = [EpochRecord(0, {}, alarm="a line"), EpochRecord(1, {})]
    loaded.load_files(state.to_files())
    assert [record.alarm for record in loaded.history] == ["a line", None]


def best_of(*accuracies: tuple[float, float]) -> int:
    """The best epoch of a run with these (robust, clean) accuracies of epoch 0, 1, ..."""
    state = bare()
    state.history = [
        EpochRecord(epoch, {"validation/robust_accuracy": robust, "validation/clean_accuracy": clean})
        for epoch, (robust, clean) in enumerate(accuracies)
    ]
    return state.best.epoch


def test_the_best_epoch_is_the_most_robust_then_the_most_accurate_then_the_earliest() -> None:
    assert best_of((0.0, 0.1), (0.4, 0.9), (0.5, 0.7), (0.3, 0.99)) == 2
    assert best_of((0.0, 0.1), (0.5, 0.7), (0.5, 0.8), (0.4, 0.9)) == 2
    assert best_of((0.0, 0.1), (0.5, 0.8), (0.5, 0.8), (0.5, 0.7)) == 1


def test_the_best_epoch_of_a_training_on_benign_images_is_the_most_accurate() -> None:
    """Its robust accuracy is highest where it has hardly learned anything."""
    finished = digits_run({"training": {"epochs": 3}, "objective": {"name": "standard"}}).go()
    accuracies = [record.metrics["validation/clean_accuracy"] for record in finished.history[1:]]
    assert finished.best.epoch == 1 + accuracies.index(max(accuracies))
    assert [record.selection for record in finished.history[1:]] == accuracies
    finished.history[1].metrics["validation/robust_accuracy"] = 1.0
    assert finished.best.epoch == 1 + accuracies.index(max(accuracies))
    assert "validation/selection" not in digits_run({"training": {"epochs": 1}}).go().history[1].metrics


def test_the_untrained_network_is_never_the_best() -> None:
    assert best_of((0.9, 0.9), (0.1, 0.2)) == 1
    with pytest.raises(ValueError, match="no epoch has finished"):
        best_of((0.9, 0.9))


def test_epochs_are_counted_from_the_first_trained_one() -> None:
    state = bare()
    assert state.epoch == 0
    for epoch in range(3):
        state.history.append(EpochRecord(epoch, {}))
        assert state.epoch == epoch


def test_metrics_are_plain_json() -> None:
    for record in digits_run({"training": {"epochs": 1}}).go().history:
        assert json.loads(json.dumps(record.metrics)) == record.metrics
        assert all(type(value) is float and math.isfinite(value) for value in record.metrics.values())
