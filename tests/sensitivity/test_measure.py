from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from worker_processes import run_workers

from distsens.sensitivity import (
    RELATIVE_FLOOR,
    ActivationProbe,
    LayerSensitivity,
    SensitivityMeter,
    pair_sums,
    relative,
    split_pairs,
)

SHAPES = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),  # feature maps (C, H, W)
    st.tuples(st.integers(1, 5)),  # units (C,)
    st.tuples(st.integers(1, 3), st.integers(1, 5)),  # tokens (T, C)
)


def of_neuron(sample: Tensor, m: int) -> list[float]:
    """All outputs of neuron m on one sample of shape (C, H, W), (C,) or (T, C), as Python floats."""
    values = sample.double().tolist()
    if sample.ndim == 3:
        return [value for row in values[m] for value in row]
    if sample.ndim == 2:
        return [token[m] for token in values]
    return [values[m]]


def brute_force(benign: Tensor, adversarial: Tensor) -> tuple[list[float], list[float]]:
    """Sensitivity and mean absolute benign output of every neuron, by the definition and one number at a time."""
    neurons = benign.shape[2] if benign.ndim == 3 else benign.shape[1]
    absolute, magnitude = [], []
    for m in range(neurons):
        sigma = size = 0.0
        for x, x_adv in zip(benign, adversarial, strict=True):
            f, f_adv = of_neuron(x, m), of_neuron(x_adv, m)
            sigma += sum(abs(a - b) for a, b in zip(f, f_adv, strict=True)) / len(f)
            size += sum(abs(a) for a in f) / len(f)
        absolute.append(sigma / len(benign))
        magnitude.append(size / len(benign))
    return absolute, magnitude


def brute_force_relative(absolute: list[float], magnitude: list[float]) -> list[float]:
    floor = RELATIVE_FLOOR * sum(magnitude) / len(magnitude)
    divisors = [max(size, floor) for size in magnitude]
    return [a / d if d > 0 else 0.0 for a, d in zip(absolute, divisors, strict=True)]


def seen_by_probe(benign: Tensor, adversarial: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Raw outputs of a layer as the probe hands them to the meter."""
    probe = ActivationProbe(nn.Sequential(nn.Identity()), ["0"])
    with probe:
        probe.model(torch.cat([benign, adversarial]))
    return split_pairs(probe.outputs)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def measured(benign: Tensor, adversarial: Tensor) -> LayerSensitivity:
    meter = SensitivityMeter()
    meter.update(*seen_by_probe(benign, adversarial))
    return meter.compute()["0"]


def assert_equal(found: LayerSensitivity, benign: Tensor, adversarial: Tensor) -> None:
    absolute, magnitude = brute_force(benign, adversarial)
    assert found.absolute.tolist() == pytest.approx(absolute, rel=1e-6, abs=1e-6)
    assert found.magnitude.tolist() == pytest.approx(magnitude, rel=1e-6, abs=1e-6)
    assert found.relative.tolist() == pytest.approx(brute_force_relative(absolute, magnitude), rel=1e-5, abs=1e-6)


@settings(max_examples=80)
@given(data=st.data(), shape=SHAPES, pairs=st.integers(1, 7), seed=st.integers(0, 2**32 - 1))
def test_equals_a_loop_whatever_the_order_the_batches_and_the_shards(
    data: st.DataObject, shape: tuple[int, ...], pairs: int, seed: int
) -> None:
    benign, adversarial = normal(seed, pairs, *shape), normal(seed + 1, pairs, *shape)
    order = data.draw(st.permutations(range(pairs)), label="order")
    shard_of = data.draw(st.lists(st.integers(0, 2), min_size=pairs, max_size=pairs), label="shard of each pair")
    batch_size = data.draw(st.integers(1, pairs), label="batch size")

    meters = [SensitivityMeter() for _ in range(3)]
    for shard, meter in enumerate(meters):
        mine = [i for i in order if shard_of[i] == shard]
        for start in range(0, len(mine), batch_size):
            batch = mine[start : start + batch_size]
            meter.update(*seen_by_probe(benign[batch], adversarial[batch]))
    total = SensitivityMeter()
    for meter in meters:
        total.merge(meter)

    assert total.pairs == pairs
    assert_equal(total.compute()["0"], benign, adversarial)


def test_layers_of_a_real_network_keep_their_names_and_their_neurons_order() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 2))
    benign, adversarial = normal(1, 4, 2, 4, 4), normal(2, 4, 2, 4, 4)
    probe, meter = ActivationProbe(model, ["auto"]), SensitivityMeter()
    with probe, torch.no_grad():
        model(torch.cat([benign, adversarial]))
    meter.update(*split_pairs(probe.outputs))

    result = meter.compute()
    assert list(result) == ["0", "3"]
    with torch.no_grad():
        assert_equal(result["0"], model[0](benign), model[0](adversarial))
        assert_equal(result["3"], model[:4](benign), model[:4](adversarial))


def test_changes_of_opposite_sign_do_not_cancel() -> None:
    benign = torch.zeros(2, 1, 2, 2)
    adversarial = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]], [[[-1.0, 1.0], [-1.0, 1.0]]]])
    assert measured(benign, adversarial).absolute.tolist() == [1.0]


@settings(max_examples=30)
@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1), factor=st.floats(1e-3, 1e3))
def test_scaling_a_layer_scales_the_absolute_and_leaves_the_relative(
    shape: tuple[int, ...], seed: int, factor: float
) -> None:
    benign, adversarial = normal(seed, 3, *shape), normal(seed + 1, 3, *shape)
    plain, scaled = measured(benign, adversarial), measured(factor * benign, factor * adversarial)
    torch.testing.assert_close(scaled.absolute, factor * plain.absolute, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(scaled.relative, plain.relative, rtol=1e-5, atol=0.0)


def test_a_neuron_silent_on_benign_images_is_divided_by_the_floor() -> None:
    found = relative(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 2.0, 4.0]))
    assert found.tolist() == pytest.approx([1.0 / (RELATIVE_FLOOR * 2.0), 0.5, 0.25])


def test_a_layer_silent_on_benign_images_has_no_relative_sensitivity() -> None:
    found = measured(torch.zeros(2, 3), torch.ones(2, 3))
    assert found.absolute.tolist() == [1.0, 1.0, 1.0]
    assert found.relative.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_widened_before_they_are_subtracted(dtype: torch.dtype) -> None:
    benign = (256.0 + normal(0, 3, 4, 5, 5)).to(dtype)
    adversarial = normal(1, 3, 4, 5, 5).to(dtype)
    assert_equal(measured(benign, adversarial), benign, adversarial)


def test_float64_outputs_stay_float64() -> None:
    benign = torch.ones(1, 1, dtype=torch.float64)
    assert measured(benign, benign + 1e-12).absolute.item() == pytest.approx(1e-12, rel=1e-3)


def test_measuring_needs_no_gradient_and_holds_no_graph() -> None:
    benign = normal(0, 2, 3, 1).requires_grad_()
    meter = SensitivityMeter()
    meter.update({"a": benign}, {"a": benign * 2})
    assert not meter.compute()["a"].absolute.requires_grad
    assert not pair_sums(benign, benign * 2).difference.requires_grad


def test_an_empty_batch_changes_nothing() -> None:
    meter = SensitivityMeter()
    meter.update({"a": torch.ones(2, 3, 1)}, {"a": torch.zeros(2, 3, 1)})
    meter.update({"a": torch.ones(0, 3, 1)}, {"a": torch.zeros(0, 3, 1)})
    assert meter.pairs == 2
    assert meter.compute()["a"].absolute.tolist() == [1.0, 1.0, 1.0]


def test_merging_a_meter_does_not_tie_the_two_together() -> None:
    first, second = SensitivityMeter(), SensitivityMeter()
    second.update({"a": torch.ones(1, 2, 1)}, {"a": torch.zeros(1, 2, 1)})
    first.merge(second)
    first.update({"a": torch.ones(1, 2, 1)}, {"a": -torch.ones(1, 2, 1)})
    assert first.compute()["a"].absolute.tolist() == [1.5, 1.5]
    assert second.compute()["a"].absolute.tolist() == [1.0, 1.0]


def test_wrong_updates_are_refused() -> None:
    meter = SensitivityMeter()
    x = torch.ones(2, 3, 1)
    with pytest.raises(ValueError, match="no pair"):
        meter.compute()
    with pytest.raises(ValueError, match="layers differ"):
        meter.update({"a": x}, {"b": x})
    with pytest.raises(ValueError, match="equal shapes"):
        meter.update({"a": x}, {"a": x[:1]})
    with pytest.raises(ValueError, match="same pairs"):
        meter.update({"a": x, "b": x[:1]}, {"a": x, "b": x[:1]})
    meter.update({"a": x}, {"a": x})
    with pytest.raises(ValueError, match="same layers"):
        meter.update({"b": x}, {"b": x})


def held_bytes(meter: SensitivityMeter) -> int:
    tensors = [t for held in vars(meter).values() if isinstance(held, dict) for t in held.values()]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def test_memory_does_not_grow_with_the_data() -> None:
    meter = SensitivityMeter()
    sizes = set()
    for seed in range(20):
        meter.update({"a": normal(seed, 50, 4, 9)}, {"a": normal(seed + 1, 50, 4, 9)})
        sizes.add(held_bytes(meter))
    assert meter.pairs == 1000
    assert sizes == {2 * 4 * 8}  # two float64 sums of four neurons


def test_reduce_without_a_process_group_changes_nothing() -> None:
    meter = SensitivityMeter()
    meter.update({"a": normal(0, 2, 3, 1)}, {"a": normal(1, 2, 3, 1)})
    before = meter.compute()["a"].absolute
    meter.reduce()
    assert meter.pairs == 2
    assert torch.equal(meter.compute()["a"].absolute, before)


SHARDS = {"uneven": ([0, 1, 2, 3], [4]), "one empty": ([], [0, 1, 2, 3, 4])}


def five_pairs() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    shapes = {"b": (5, 3, 4), "a": (5, 2, 1)}
    return (
        {layer: normal(seed, *shape) for seed, (layer, shape) in enumerate(shapes.items())},
        {layer: normal(10 + seed, *shape) for seed, (layer, shape) in enumerate(shapes.items())},
    )


def reduce_on_a_worker() -> dict[str, dict[str, tuple[int, Tensor, Tensor, Tensor]]]:
    with pytest.raises(ValueError, match="told the layers' neurons"):
        SensitivityMeter().reduce()
    rank = dist.get_rank()
    benign, adversarial = five_pairs()
    results = {}
    for name, shards in SHARDS.items():
        # The first worker is told the layers, in another order than the second meets them.
        meter = SensitivityMeter({"a": 2, "b": 3} if rank == 0 else None)
        for i in shards[rank]:
            one = slice(i, i + 1)
            meter.update(
                {layer: output[one] for layer, output in benign.items()},
                {layer: output[one] for layer, output in adversarial.items()},
            )
        meter.reduce()
        results[name] = {
            layer: (meter.pairs, found.absolute, found.magnitude, found.relative)
            for layer, found in meter.compute().items()
        }
    return results


def test_two_workers_reduce_to_what_one_process_measures() -> None:
    (ranks,) = run_workers(reduce_on_a_worker)

    benign, adversarial = five_pairs()
    alone = SensitivityMeter()
    alone.update(benign, adversarial)
    for name in SHARDS:
        for layer, expected in alone.compute().items():
            (pairs, *tensors), (other_pairs, *other_tensors) = ranks[0][name][layer], ranks[1][name][layer]
            assert pairs == other_pairs == 5
            assert_all_equal(tensors, other_tensors)
            for found, wanted in zip(tensors, (expected.absolute, expected.magnitude, expected.relative), strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def assert_all_equal(left: Iterable[Tensor], right: Iterable[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_sums_taken_by_pair_sums_count_like_the_pairs_themselves() -> None:
    benign, adversarial = normal(0, 4, 3, 5), normal(1, 4, 3, 5)
    by_update, by_sums = SensitivityMeter(), SensitivityMeter()
    by_update.update({"a": benign}, {"a": adversarial})
    by_sums.add({"a": pair_sums(benign, adversarial)})
    assert torch.equal(by_update.compute()["a"].absolute, by_sums.compute()["a"].absolute)
    assert by_sums.pairs == 4
