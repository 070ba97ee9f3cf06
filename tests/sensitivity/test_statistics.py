from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distsens.sensitivity import SensitivityMeter, StatisticsMeter


def outputs(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def meter_of(benign: Tensor, adversarial: Tensor, labels: Tensor, classes: int = 3) -> StatisticsMeter:
    meter = StatisticsMeter(classes)
    meter.update({"l": benign}, {"l": adversarial}, labels)
    return meter


def brute_force(benign: Tensor, adversarial: Tensor, neuron: int) -> tuple[list[float], list[float]]:
    """Differences and magnitudes of one neuron, a pair at a time."""
    differences, magnitudes = [], []
    for x, y in zip(benign.double().tolist(), adversarial.double().tolist(), strict=True):
        differences.append(sum(abs(a - b) for a, b in zip(x[neuron], y[neuron], strict=True)) / len(x[neuron]))
        magnitudes.append(sum(abs(a) for a in x[neuron]) / len(x[neuron]))
    return differences, magnitudes


@settings(max_examples=40)
@given(data=st.data(), pairs=st.integers(2, 9), seed=st.integers(0, 2**31))
def test_means_and_standard_errors_are_those_of_a_loop_over_pairs(data: st.DataObject, pairs: int, seed: int) -> None:
    benign, adversarial = outputs(seed, pairs, 3, 4), outputs(seed + 1, pairs, 3, 4)
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=pairs, max_size=pairs)))
    found = meter_of(benign, adversarial, labels).compute()["l"]
    for neuron in range(3):
        d, a = brute_force(benign, adversarial, neuron)
        ratio = statistics.mean(d) / statistics.mean(a)
        residual = sum((x - ratio * y) ** 2 for x, y in zip(d, a, strict=True)) / (pairs - 1)
        assert found.absolute[neuron].item() == pytest.approx(statistics.mean(d), rel=1e-5)
        assert found.absolute_error[neuron].item() == pytest.approx(
            statistics.stdev(d) / math.sqrt(pairs),
            rel=1e-4,
            abs=1e-6,  # differences are float32
        )
        assert found.relative[neuron].item() == pytest.approx(ratio, rel=1e-5)
        expected = math.sqrt(residual / pairs) / statistics.mean(a)
        assert found.relative_error[neuron].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert found.output[neuron].item() == pytest.approx(benign[:, neuron].double().mean().item(), abs=1e-6)


@settings(max_examples=25)
@given(data=st.data(), pairs=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_sharded_and_merged_it_is_the_same(data: st.DataObject, pairs: int, seed: int) -> None:
    benign, adversarial = outputs(seed, pairs, 3, 2), outputs(seed + 1, pairs, 3, 2)
    labels = outputs(seed, pairs).gt(0).long()
    shard_of = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=pairs, max_size=pairs)))
    merged = StatisticsMeter(3)
    for shard in range(4):
        rows = shard_of == shard
        if rows.any():
            merged.merge(meter_of(benign[rows], adversarial[rows], labels[rows]))
    whole = meter_of(benign, adversarial, labels)
    assert merged.counts.tolist() == whole.counts.tolist()
    for field, value in vars(whole.compute()["l"]).items():
        assert torch.allclose(getattr(merged.compute()["l"], field), value, rtol=1e-12, equal_nan=True), field


def test_a_class_by_itself_is_what_its_pairs_alone_give() -> None:
    benign, adversarial, labels = outputs(0, 8, 3, 2), outputs(1, 8, 3, 2), torch.tensor([0, 1, 0, 2, 1, 1, 0, 2])
    meter = meter_of(benign, adversarial, labels)
    alone = meter_of(benign[labels == 1], adversarial[labels == 1], labels[labels == 1]).compute()["l"]
    for field, value in vars(meter.compute(1)["l"]).items():
        assert torch.allclose(getattr(alone, field), value, rtol=1e-12), field


def test_it_agrees_with_the_meter_of_the_training() -> None:
    benign, adversarial = outputs(0, 8, 3, 2), outputs(1, 8, 3, 2)
    benign[:, 0] = 0.0  # a silent neuron, whose divisor is the floor
    other = SensitivityMeter()
    other.update({"l": benign}, {"l": adversarial})
    found, trained = meter_of(benign, adversarial, torch.zeros(8).long()).compute()["l"], other.compute()["l"]
    for field in ("absolute", "relative", "magnitude"):
        assert torch.allclose(getattr(found, field), getattr(trained, field), rtol=1e-6), field
    assert torch.isfinite(found.relative_error).all()


def test_the_error_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        benign = outputs(seed, 50, 1, 1)
        adversarial = benign + outputs(seed + 1000, 50, 1, 1)
        found = meter_of(benign, adversarial, torch.zeros(50).long()).compute()["l"]
        truth = math.sqrt(2 / math.pi)  # the mean absolute value of a standard normal
        covered += abs(found.absolute.item() - truth) <= 1.96 * found.absolute_error.item()
    assert 180 <= covered <= 199


def test_one_pair_has_no_error_and_none_has_nothing() -> None:
    assert (
        meter_of(outputs(0, 1, 2, 2), outputs(1, 1, 2, 2), torch.tensor([1]))
        .compute()["l"]
        .absolute_error.isnan()
        .all()
    )
    with pytest.raises(ValueError, match="no pair was measured"):
        StatisticsMeter(2).compute()
    with pytest.raises(ValueError, match="no pair of class 0"):
        meter_of(outputs(0, 1, 2, 2), outputs(1, 1, 2, 2), torch.tensor([1])).compute(0)


def test_half_precision_is_widened_and_other_layers_are_refused() -> None:
    benign = torch.full((4, 2, 2), 100.0, dtype=torch.bfloat16)
    found = meter_of(benign, benign + 1.0, torch.zeros(4).long()).compute()["l"]
    assert found.absolute.tolist() == [1.0, 1.0]
    meter = meter_of(outputs(0, 2, 2, 2), outputs(1, 2, 2, 2), torch.tensor([0, 1]))
    without = StatisticsMeter()
    without.update({"l": benign}, {"l": benign + 1.0}, torch.zeros(4).long())
    assert without.compute()["l"].absolute.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="classes"):
        without.merge(meter_of(benign, benign, torch.zeros(4).long()))
    with pytest.raises(ValueError, match="same layers"):
        meter.update({"k": outputs(0, 2, 2, 2)}, {"k": outputs(1, 2, 2, 2)}, torch.tensor([0, 1]))
