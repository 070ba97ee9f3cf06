from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distsens.errors import InputError
from distsens.sensitivity import kept_fraction, select_neurons, selected_count

# Few distinct values, so that ties are frequent.
VALUES = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=30)
RATIOS = st.floats(0.001, 1.0)


@given(values=VALUES, ratio=RATIOS)
def test_top_and_bottom_equal_a_sort_in_which_ties_go_to_the_lower_index(values: list[float], ratio: float) -> None:
    sensitivity = {"layer": torch.tensor(values)}
    count = selected_count(len(values), ratio)
    most = sorted(range(len(values)), key=lambda m: (-values[m], m))[:count]
    least = sorted(range(len(values)), key=lambda m: (values[m], m))[:count]
    assert select_neurons(sensitivity, ratio, "top")["layer"].tolist() == sorted(most)
    assert select_neurons(sensitivity, ratio, "bottom")["layer"].tolist() == sorted(least)


@pytest.mark.parametrize(
    ("neurons", "ratio", "count"),
    [(100, 0.07, 7), (100, 0.071, 8), (10, 0.1, 1), (11, 0.1, 2), (64, 1.0, 64), (64, 1e-6, 1), (8, 1e-12, 1)],
)
def test_the_count_is_the_ceiling_and_at_least_one(neurons: int, ratio: float, count: int) -> None:
    assert selected_count(neurons, ratio) == count


@given(neurons=st.integers(1, 5000), percent=st.integers(1, 100))
def test_whole_percents_are_counted_without_rounding_errors(neurons: int, percent: int) -> None:
    assert selected_count(neurons, percent / 100) == -(-neurons * percent // 100)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.0001, math.nan, math.inf])
@pytest.mark.parametrize("how", ["top", "random", "bottom"])
def test_a_ratio_that_is_no_part_of_a_layer_is_refused(ratio: float, how: str) -> None:
    with pytest.raises(InputError, match=r"ratio.*\(0, 1\]"):
        select_neurons({"layer": torch.ones(4)}, ratio, how)


def test_an_unknown_selection_is_refused() -> None:
    with pytest.raises(InputError, match=r"'tpo'.*top, random, bottom, all"):
        select_neurons({"layer": torch.ones(4)}, 0.5, "tpo")


def test_all_takes_the_whole_layer_whatever_the_ratio() -> None:
    assert select_neurons({"layer": torch.tensor([3.0, 1.0, 2.0])}, 0.1, "all")["layer"].tolist() == [0, 1, 2]


def test_every_layer_gives_its_own_share() -> None:
    chosen = select_neurons({"a": torch.tensor([9.0, 8.0, 7.0, 6.0]), "b": torch.tensor([0.0, 1.0])}, 0.5)
    assert {layer: neurons.tolist() for layer, neurons in chosen.items()} == {"a": [0, 1], "b": [1]}


def test_random_is_a_subset_that_depends_on_seed_and_layer_but_not_on_the_values() -> None:
    first = select_neurons({"a": torch.rand(100), "b": torch.rand(100)}, 0.2, "random", seed=1)
    again = select_neurons({"a": torch.rand(100), "b": torch.rand(100)}, 0.2, "random", seed=1)
    other = select_neurons({"a": torch.rand(100)}, 0.2, "random", seed=2)
    assert len(set(first["a"].tolist())) == 20
    assert torch.equal(first["a"], again["a"])
    assert torch.equal(first["b"], again["b"])
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], other["a"])


def test_random_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    select_neurons({"a": torch.ones(10)}, 0.5, "random")
    assert torch.equal(torch.get_rng_state(), before)


def test_random_reaches_every_neuron_about_equally_often() -> None:
    hits = torch.zeros(20)
    for seed in range(400):
        hits[select_neurons({"a": torch.ones(20)}, 0.25, "random", seed=seed)["a"]] += 1
    assert hits.min() > 60  # 100 expected, standard deviation 9
    assert hits.max() < 140


def test_kept_fraction_is_the_part_of_the_earlier_selection_that_remains() -> None:
    before = {"a": torch.tensor([0, 1, 2, 3]), "gone": torch.tensor([0])}
    after = {"a": torch.tensor([1, 3, 7, 8]), "b": torch.tensor([5]), "new": torch.tensor([1])}
    assert kept_fraction(before, after) == {"a": 0.5}
    assert kept_fraction(before, {"a": torch.tensor([1])}) == {"a": 0.25}
    assert kept_fraction({"a": torch.tensor([2])}, {"a": torch.tensor([2])}) == {"a": 1.0}
    assert kept_fraction({}, after) == {}
