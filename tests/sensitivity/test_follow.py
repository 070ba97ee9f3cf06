from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distsens.sensitivity import (
    NeuronCorrelation,
    TopImages,
    chance_jaccard,
    jaccard,
    rank_correlation,
    ranks,
    turnover,
)

SETS = st.sets(st.integers(0, 12)).map(sorted)


@given(SETS, SETS)
def test_jaccard_is_that_of_sets(first: list[int], second: list[int]) -> None:
    union = set(first) | set(second)
    expected = len(set(first) & set(second)) / len(union) if union else 1.0
    assert jaccard(torch.tensor(first).long(), torch.tensor(second).long()) == expected


@given(st.integers(1, 7), st.data())
def test_chance_is_the_mean_over_all_pairs_of_sets(neurons: int, data: st.DataObject) -> None:
    first, second = (data.draw(st.integers(0, neurons)) for _ in range(2))
    others = itertools.combinations(range(neurons), second)
    found = [jaccard(torch.arange(first), torch.tensor(other).long()) for other in others]
    assert sum(found) / len(found) == pytest.approx(chance_jaccard(neurons, first, second))


def test_chance_is_known_of_large_layers_too() -> None:
    assert chance_jaccard(4096, 410, 410) == pytest.approx(0.0527, abs=1e-3)


@given(st.lists(SETS, min_size=1, max_size=5))
def test_births_and_deaths_lead_from_each_set_to_the_next(sets: list[list[int]]) -> None:
    found = turnover([torch.tensor(one).long() for one in sets])
    assert len(found) == len(sets) - 1
    for before, after, change in zip(sets, sets[1:], found, strict=False):
        assert change.born.tolist() == sorted(set(after) - set(before))
        assert change.died.tolist() == sorted(set(before) - set(after))
        assert change.kept.tolist() == sorted(set(before) & set(after))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_rank_correlation_is_spearmans_also_with_ties(values: list[tuple[int, int]]) -> None:
    a, b = torch.tensor(values).double().T
    assert ranks(a).tolist() == stats.rankdata(a.numpy()).tolist()
    found = rank_correlation(a, b)
    if len(a.unique()) == 1 or len(b.unique()) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(stats.spearmanr(a.numpy(), b.numpy()).statistic, abs=1e-9)


def test_correlation_of_neurons_is_that_over_images_and_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(9, 3, 4, generator=generator) + 1000.0
    second = torch.randn(9, 5, 4, generator=generator)
    second[:, 2] = 3.0 * first[:, 1] - 5.0
    second[:, 4] = 1.0  # constant
    meter = NeuronCorrelation()
    for start in (0, 4, 7):
        stop = {0: 4, 4: 7, 7: 9}[start]
        meter.update(first[start:stop], second[start:stop])
    a, b = first.movedim(1, 0).flatten(1), second.movedim(1, 0).flatten(1)
    expected = torch.corrcoef(torch.cat([a, b]).double())[:3, 3:].nan_to_num(0.0)
    assert torch.allclose(meter.correlation, expected, atol=1e-6)
    assert meter.correlation[1, 2].item() == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="positions"):
        meter.update(first, second[:, :, :2])


@given(st.data(), st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_top_images_do_not_depend_on_order_or_shards(data: st.DataObject, values: list[int]) -> None:
    order = data.draw(st.permutations(range(len(values))))
    cut = data.draw(st.integers(0, len(values)))
    shards = [TopImages(3), TopImages(3)]
    for shard, part in zip(shards, (order[:cut], order[cut:]), strict=True):
        if part:
            column = torch.tensor([[float(values[i])] for i in part])
            shard.update({"l": column}, torch.tensor(part))
    shards[1].merge(shards[0])
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:3]
    assert shards[1].images["l"].tolist() == [expected]
    assert shards[1].values["l"].tolist() == [[float(values[i]) for i in expected]]
