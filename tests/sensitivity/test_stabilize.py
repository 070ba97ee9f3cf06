from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from worker_processes import run_workers

from distsens.errors import InputError
from distsens.sensitivity import (
    ActivationProbe,
    PairRows,
    SensitivityMeter,
    Stabilizer,
    Stabilizing,
    neuron_counts,
    select_neurons,
    stabilizing_distance,
)

DISTANCES = ("l1", "l2", "cosine")
EVERY = Stabilizing(ratio=1.0, selection="all")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> nn.Sequential:
    """Small, in float64, with an activation in place behind the probed convolution."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 5, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(20, 6), nn.Tanh(), nn.Linear(6, 3)
    ).double()


def stabilizer_of(model: nn.Module, options: Stabilizing) -> Stabilizer:
    return Stabilizer(options, neuron_counts(model, ["auto"], normal(0, 1, 1, 3, 3)))


def halves(count: int) -> PairRows:
    """Rows of a forward over ``count`` benign images and then all their twins."""
    return PairRows(slice(0, count), slice(count, 2 * count))


def window(stabilizer: Stabilizer, model: nn.Module, pairs: Tensor) -> Tensor | None:
    """Count and give the term of one forward over pairs (2N, 1, 3, 3)."""
    with ActivationProbe(model, ["auto"], read=partial(stabilizer.read, rows=halves(len(pairs) // 2))) as probe:
        model(pairs)
    stabilizer.count(probe.outputs)
    return stabilizer.term(probe.outputs)


def take(stabilizer: Stabilizer, layers: dict[str, Tensor]) -> Tensor | None:
    """Count and give the term of outputs (2N, neurons, positions)."""
    readings = {layer: stabilizer.read(layer, outputs, halves(len(outputs) // 2)) for layer, outputs in layers.items()}
    stabilizer.count(readings)
    return stabilizer.term(readings)


def sigma(stabilizer: Stabilizer, layers: dict[str, list[float]]) -> None:
    """Count one pair whose neurons (one position each) change by these amounts around a benign output of one."""
    take(
        stabilizer,
        {
            layer: torch.tensor([[1.0] * len(values), [1.0 + v for v in values]])[:, :, None]
            for layer, values in layers.items()
        },
    )


# The distance.


def naive_distance(benign: Tensor, adversarial: Tensor, distance: str, scale: Tensor) -> list[float]:
    result = []
    for x, x_adv in zip(benign, adversarial, strict=True):
        f = [[value / s for value in row] for row, s in zip(x.tolist(), scale.tolist(), strict=True)]
        g = [[value / s for value in row] for row, s in zip(x_adv.tolist(), scale.tolist(), strict=True)]
        if distance == "cosine":
            dot = sum(a * b for p, q in zip(f, g, strict=True) for a, b in zip(p, q, strict=True))
            norms = [math.sqrt(sum(a * a for row in rows for a in row)) for rows in (f, g)]
            result.append(1.0 - dot / (norms[0] * norms[1]))
            continue
        power = 1 if distance == "l1" else 2
        neurons = [
            sum(abs(a - b) ** power for a, b in zip(p, q, strict=True)) / len(p) for p, q in zip(f, g, strict=True)
        ]
        result.append(sum(neurons) / len(neurons))
    return result


@settings(max_examples=60)
@given(
    distance=st.sampled_from(DISTANCES),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6)),
    seed=st.integers(0, 2**32 - 1),
    scaled=st.booleans(),
)
def test_distances_equal_loops_over_pairs_neurons_and_positions(
    distance: str, shape: tuple[int, int, int], seed: int, scaled: bool
) -> None:
    benign, adversarial = normal(seed, *shape), normal(seed + 1, *shape)
    scale = normal(seed + 2, shape[1]).abs() + 0.1 if scaled else None
    found = stabilizing_distance(benign, adversarial, distance, scale)
    expected = naive_distance(benign, adversarial, distance, torch.ones(shape[1]) if scale is None else scale)
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_gradient_of_every_distance_is_that_of_finite_differences(distance: str, scaled: bool) -> None:
    benign, adversarial = normal(1, 3, 4, 5).requires_grad_(), normal(2, 3, 4, 5).requires_grad_()
    scale = normal(3, 4).abs() + 0.5 if scaled else None
    assert (benign - adversarial).abs().min() > 1e-3  # away from the kink of l1
    assert torch.autograd.gradcheck(lambda x, y: stabilizing_distance(x, y, distance, scale), (benign, adversarial))


@pytest.mark.parametrize("distance", DISTANCES)
def test_half_precision_outputs_are_widened_before_they_are_compared(distance: str) -> None:
    benign, adversarial = (256 + normal(1, 3, 4, 5)).bfloat16(), (normal(2, 3, 4, 5)).bfloat16()
    found = stabilizing_distance(benign, adversarial, distance)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), stabilizing_distance(benign.double(), adversarial.double(), distance), rtol=1e-5, atol=1e-6
    )


# The term.


@pytest.mark.parametrize("measure", ["absolute", "relative"])
@pytest.mark.parametrize("selection", ["top", "all"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_gradient_of_the_term_through_a_network_is_that_of_finite_differences(
    distance: str, selection: str, measure: str
) -> None:
    model = network()
    stabilizer = stabilizer_of(model, Stabilizing(ratio=0.5, selection=selection, distance=distance, measure=measure))
    window(stabilizer, model, normal(1, 6, 1, 3, 3))
    stabilizer.refresh()
    names = [name for name, _ in model.named_parameters() if not name.startswith("5")]  # the term stops at the logits

    def term(images: Tensor, *parameters: Tensor) -> Tensor:
        with ActivationProbe(model, ["auto"], read=partial(stabilizer.read, rows=halves(2))) as probe:
            functional_call(model, dict(zip(names, parameters, strict=True)), images)
        return stabilizer.term(probe.outputs).mean()

    state = dict(model.named_parameters())
    inputs = [normal(2, 4, 1, 3, 3).requires_grad_(), *(state[name].detach().requires_grad_() for name in names)]
    assert torch.autograd.gradcheck(term, inputs, fast_mode=True)


def test_there_is_no_term_before_the_first_refresh() -> None:
    model = network()
    stabilizer = stabilizer_of(model, EVERY)
    assert window(stabilizer, model, normal(1, 4, 1, 3, 3)) is None
    stabilizer.refresh()
    assert window(stabilizer, model, normal(1, 4, 1, 3, 3)).shape == (2,)


def test_a_refresh_without_pairs_selects_nothing() -> None:
    stabilizer = stabilizer_of(network(), EVERY)
    stabilizer.refresh()
    assert stabilizer.selected == {}


def test_the_mean_l1_term_over_all_neurons_is_the_mean_sensitivity_that_the_meter_finds() -> None:
    model, pairs = network(), normal(2, 8, 1, 3, 3)
    stabilizer = stabilizer_of(model, EVERY)
    window(stabilizer, model, normal(1, 4, 1, 3, 3))
    stabilizer.refresh()
    term = window(stabilizer, model, pairs)

    meter = SensitivityMeter()
    with torch.no_grad():
        first, second = model[0](pairs).flatten(2), model[:4](pairs)[:, :, None]
    meter.update({"0": first[:4], "3": second[:4]}, {"0": first[4:], "3": second[4:]})
    layers = [found.absolute.mean() for found in meter.compute().values()]
    torch.testing.assert_close(term.mean(), sum(layers) / len(layers))


def test_the_term_takes_the_selected_neurons_alone_and_weighs_layers_equally() -> None:
    stabilizer = Stabilizer(Stabilizing(ratio=0.5), {"a": 4, "b": 2})
    sigma(stabilizer, {"a": [9.0, 0.0, 8.0, 0.0], "b": [0.0, 1.0]})
    stabilizer.refresh()
    assert {layer: chosen.tolist() for layer, chosen in stabilizer.selected.items()} == {"a": [0, 2], "b": [1]}
    outputs = {
        "a": torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 50.0, 3.0, 50.0]]),
        "b": torch.tensor([[0.0, 0], [50, 6]]),
    }
    term = take(stabilizer, {layer: output[:, :, None] for layer, output in outputs.items()})
    assert term.tolist() == [((1 + 3) / 2 + 6) / 2]


def test_a_relative_term_divides_by_the_magnitude_of_the_last_refresh_and_so_ignores_the_scale_of_a_layer() -> None:
    options = replace(EVERY, measure="relative")
    benign, adversarial = normal(1, 3, 4, 5), normal(2, 3, 4, 5)
    terms = {}
    for factor in (1.0, 1000.0):
        stabilizer = Stabilizer(options, {"a": 4})
        outputs = factor * torch.cat([benign, adversarial])
        take(stabilizer, {"a": outputs})
        stabilizer.refresh()
        terms[factor] = take(stabilizer, {"a": outputs}).mean()
        torch.testing.assert_close(terms[factor], stabilizer.sensitivity()["a"].mean())
    torch.testing.assert_close(terms[1.0], terms[1000.0])


def test_a_relative_term_divides_every_selected_neuron_by_its_own_magnitude() -> None:
    stabilizer = Stabilizer(Stabilizing(ratio=0.5, measure="relative"), {"a": 4})
    outputs = torch.tensor([[8.0, 1.0, 8.0, 4.0], [8.0, 2.0, 8.0, 6.0]])[:, :, None]
    take(stabilizer, {"a": outputs})
    stabilizer.refresh()
    assert stabilizer.selected["a"].tolist() == [1, 3]
    assert take(stabilizer, {"a": outputs}).tolist() == [(1 / 1 + 2 / 4) / 2]


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_a_layer_silent_on_benign_images_adds_nothing_to_a_relative_term(distance: str) -> None:
    stabilizer = Stabilizer(replace(EVERY, measure="relative", distance=distance), {"a": 3})
    outputs = torch.cat([torch.zeros(2, 3, 1), torch.ones(2, 3, 1)]).requires_grad_()
    take(stabilizer, {"a": outputs})
    stabilizer.refresh()
    term = take(stabilizer, {"a": outputs})
    (gradient,) = torch.autograd.grad(term.sum(), outputs)
    assert term.tolist() == [0.0, 0.0]
    assert gradient.count_nonzero() == 0


def test_a_batch_that_is_no_pairs_is_refused() -> None:
    stabilizer = Stabilizer(EVERY, {"a": 3})
    with pytest.raises(ValueError, match="equal shapes"):
        stabilizer.read("a", torch.ones(3, 3, 1), PairRows(slice(0, 2), slice(2, 4)))


# The part of the pairs that is read.


@given(
    every=st.integers(1, 9),
    shares=st.lists(st.integers(0, 12), min_size=1, max_size=5),
)
def test_the_pairs_of_a_batch_do_not_depend_on_how_it_is_shared_out(every: int, shares: list[int]) -> None:
    stabilizer = Stabilizer(Stabilizing(pairs=1 / every), {"a": 3})
    found, start = [], 0
    for count in shares:
        found += list(range(start, start + count))[stabilizer.pairs(start, count)]
        start += count
    assert found == list(range(0, start, every))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("distance", DISTANCES)
def test_only_the_rows_of_the_pairs_are_read_and_get_a_gradient(distance: str, layout: torch.memory_format) -> None:
    outputs = normal(1, 9, 4, 3, 2).to(memory_format=layout).requires_grad_()
    rows = PairRows(slice(0, 3), slice(4, 9, 2))
    stabilizer = Stabilizer(Stabilizing(ratio=0.5, distance=distance), {"a": 4})
    sums = stabilizer.read("a", outputs.flatten(2), rows).sums
    benign, adversarial = outputs.detach().flatten(2)[[0, 1, 2]], outputs.detach().flatten(2)[[4, 6, 8]]
    torch.testing.assert_close(sums.difference, (benign - adversarial).abs().mean(2).sum(0))
    torch.testing.assert_close(sums.magnitude, benign.abs().mean(2).sum(0))
    assert sums.pairs == 3
    stabilizer.count({"a": stabilizer.read("a", outputs.flatten(2), rows)})
    stabilizer.refresh()

    found = stabilizer.read("a", outputs.flatten(2), rows).distance
    plain = outputs.flatten(2)[:, stabilizer.selected["a"]]
    expected = stabilizing_distance(plain[[0, 1, 2]], plain[[4, 6, 8]], distance)
    assert torch.equal(found, expected)
    (gradient,), (wanted,) = (torch.autograd.grad(one.sum(), outputs) for one in (found, expected))
    torch.testing.assert_close(gradient, wanted)
    assert gradient.stride() == outputs.stride()


def test_a_reading_holds_what_is_asked_for() -> None:
    stabilizer = Stabilizer(EVERY, {"a": 3})
    sigma(stabilizer, {"a": [1.0, 2.0, 3.0]})
    stabilizer.refresh()
    outputs = torch.ones(4, 3, 1)
    assert stabilizer.read("a", outputs, halves(2), measure=False).sums is None
    assert stabilizer.read("a", outputs, halves(2), term=False).distance is None
    assert stabilizer.read("a", outputs, halves(2), measure=False).distance.tolist() == [0.0, 0.0]


# Refreshing.


def test_sensitivities_are_an_exponential_average_of_the_windows() -> None:
    stabilizer = Stabilizer(Stabilizing(ratio=0.5, decay=0.75), {"a": 2})
    expected = None
    for first, second in ([1.0, 0.0], [0.0, 4.0], [2.0, 2.0]):
        sigma(stabilizer, {"a": [first, 0.0]})
        sigma(stabilizer, {"a": [first, second]})
        stabilizer.refresh()
        now = [first, second / 2]
        expected = now if expected is None else [0.75 * e + 0.25 * n for e, n in zip(expected, now, strict=True)]
        assert stabilizer.sensitivity()["a"].tolist() == pytest.approx(expected)
        assert stabilizer.selected["a"].tolist() == [0 if expected[0] >= expected[1] else 1]


def test_without_decay_only_the_last_window_counts() -> None:
    stabilizer = Stabilizer(Stabilizing(ratio=0.5, decay=0.0), {"a": 2})
    for amounts in ([5.0, 0.0], [0.0, 1.0]):
        sigma(stabilizer, {"a": amounts})
        stabilizer.refresh()
    assert stabilizer.sensitivity()["a"].tolist() == [0.0, 1.0]
    assert stabilizer.selected["a"].tolist() == [1]


@pytest.mark.parametrize("selection", ["top", "random", "bottom", "all"])
@pytest.mark.parametrize("measure", ["absolute", "relative"])
def test_the_neurons_selected_are_those_of_the_sensitivities(selection: str, measure: str) -> None:
    model = network()
    stabilizer = stabilizer_of(model, Stabilizing(ratio=0.3, selection=selection, measure=measure, seed=7))
    window(stabilizer, model, normal(1, 8, 1, 3, 3))
    stabilizer.refresh()
    expected = select_neurons(stabilizer.sensitivity(), 0.3, selection, seed=7)
    assert {layer: len(chosen) for layer, chosen in expected.items()} == (
        {"0": 5, "3": 6} if selection == "all" else {"0": 2, "3": 2}
    )
    assert all(torch.equal(stabilizer.selected[layer], expected[layer]) for layer in expected)


def test_absolute_and_relative_can_select_different_neurons() -> None:
    # The first neuron changes by 2 of 10, the second by 1 of 1.
    outputs = torch.tensor([[10.0, 1.0], [12.0, 2.0]])[:, :, None]
    chosen = {}
    for measure in ("absolute", "relative"):
        stabilizer = Stabilizer(Stabilizing(ratio=0.5, measure=measure), {"a": 2})
        take(stabilizer, {"a": outputs})
        stabilizer.refresh()
        chosen[measure] = stabilizer.selected["a"].tolist()
    assert chosen == {"absolute": [0], "relative": [1]}


@pytest.mark.parametrize("measure", ["absolute", "relative"])
def test_a_saved_stabilizer_goes_on_as_if_it_had_not_stopped(tmp_path: Path, measure: str) -> None:
    model = network()
    options = Stabilizing(ratio=0.3, measure=measure, decay=0.9)
    running = stabilizer_of(model, options)
    for seed in (1, 2):
        window(running, model, normal(seed, 6, 1, 3, 3))
        running.refresh()
    torch.save(running.state_dict(), tmp_path / "state.pt")
    resumed = stabilizer_of(model, options)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))

    for seed in (3, 4):
        assert list(resumed.selected) == list(running.selected)
        assert all(torch.equal(resumed.selected[layer], chosen) for layer, chosen in running.selected.items())
        terms = [window(stabilizer, model, normal(seed, 6, 1, 3, 3)) for stabilizer in (running, resumed)]
        assert torch.equal(*terms)
        for stabilizer in (running, resumed):
            stabilizer.refresh()
        for layer, average in running.sensitivity().items():
            assert torch.equal(resumed.sensitivity()[layer], average)


def test_a_state_saved_before_the_first_refresh_starts_afresh() -> None:
    model = network()
    resumed = stabilizer_of(model, EVERY)
    resumed.load_state_dict(stabilizer_of(model, EVERY).state_dict())
    assert window(resumed, model, normal(1, 4, 1, 3, 3)) is None


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("ratio", 0.0, r"\(0, 1\]"),
        ("ratio", 1.5, r"\(0, 1\]"),
        ("ratio", math.nan, r"\(0, 1\]"),
        ("pairs", 0.0, "1, 1/2, 1/3"),
        ("pairs", 2.0, "1, 1/2, 1/3"),
        ("pairs", 0.3, "1, 1/2, 1/3"),
        ("pairs", math.nan, "1, 1/2, 1/3"),
        ("decay", 1.0, r"\[0, 1\)"),
        ("decay", -0.1, r"\[0, 1\)"),
        ("selection", "most", "top, random, bottom, all"),
        ("distance", "L1", "l1, l2, cosine"),
        ("measure", "sigma", "absolute, relative"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(InputError, match=rf"stabilize\.{field}: .*{allowed}"):
        Stabilizing(**{field: value})


# Several workers.

WINDOWS = (1, 2)
SHARDS = ([0, 1, 2, 3], [4]), ([], [0, 1, 2, 3, 4]), ([0], [1, 2, 3, 4])
TWO_WORKERS = Stabilizing(ratio=0.4, measure="relative")


def train_on(shards: tuple[list[int], ...]) -> dict[str, Any]:
    """Two windows and a last forward on one worker's pairs of five: what it selects and averages, its sum of terms."""
    model = network()
    stabilizer = stabilizer_of(model, TWO_WORKERS)
    terms = []
    for seed, mine in zip((*WINDOWS, 3), shards, strict=True):
        pairs = normal(seed, 2, 5, 1, 3, 3)[:, mine].flatten(0, 1)
        term = window(stabilizer, model, pairs)
        terms.append(torch.zeros(()) if term is None else term.detach().sum())
        if seed in WINDOWS:
            stabilizer.refresh()
    return {
        "selected": stabilizer.selected,
        "sensitivity": stabilizer.sensitivity(),
        "state": stabilizer.state_dict(),
        "terms": terms,
    }


def train_on_a_worker() -> dict[str, Any]:
    return train_on(tuple(step[dist.get_rank()] for step in SHARDS))


def test_two_workers_select_average_and_stabilize_as_one() -> None:
    ((first, second),) = run_workers(train_on_a_worker)
    alone = train_on(tuple([*left, *right] for left, right in SHARDS))

    for layer, chosen in alone["selected"].items():
        assert first["selected"][layer].tolist() == second["selected"][layer].tolist() == chosen.tolist()
        assert torch.equal(first["sensitivity"][layer], second["sensitivity"][layer])
    for state in ("average", "magnitude"):
        for layer, expected in alone["state"][state].items():
            assert torch.equal(first["state"][state][layer], second["state"][state][layer])
            torch.testing.assert_close(first["state"][state][layer], expected, rtol=1e-9, atol=1e-12)
    for left, right, expected in zip(first["terms"], second["terms"], alone["terms"], strict=True):
        torch.testing.assert_close(left + right, expected, rtol=1e-9, atol=1e-12)
    assert all(term > 0 for term in alone["terms"][1:])
