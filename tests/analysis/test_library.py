from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from distsens.analysis import (
    ablate,
    compare,
    condition_agreement,
    correlate,
    match_neurons,
    measure,
    model_agreement,
    patch,
    probe,
    top_k,
)
from distsens.errors import InputError
from distsens.sensitivity import SensitivityMeter, split_pairs
from tests.analysis.digit_pairs import Digits


def test_probe_describes_every_neuron(small: Digits) -> None:
    table = probe(small.model, small.images)
    assert table.groupby("layer", sort=False).size().to_dict() == {"0": 8, "2": 12, "5": 20}
    assert table.groupby("layer", sort=False)["positions"].first().tolist() == [64, 9, 1]
    outputs = small.model[:1](small.images)
    assert table["output"][:8].tolist() == pytest.approx(outputs.mean((0, 2, 3)).tolist(), abs=1e-5)
    assert table["silent"].between(0, 1).all()


def test_measure_is_the_meter_of_the_training_and_marks_the_top(small: Digits) -> None:
    table = measure(small.model, small.images, small.twins)
    meter = SensitivityMeter()
    outputs = small.model[:1](torch.cat([small.images, small.twins])).flatten(2)
    meter.update(*split_pairs({"0": outputs}))
    assert table["absolute"][:8].tolist() == pytest.approx(meter.compute()["0"].absolute.tolist(), rel=1e-4)
    assert table[table["sensitive"]].groupby("layer", sort=False).size().tolist() == [1, 2, 2]
    assert (table["rank"] == 1).sum() == 3
    best = top_k(table)
    assert best["sensitive"].all()
    assert len(top_k(table, 3)) == 9
    assert top_k(table, 1, by="relative")["relative"].tolist() == table.groupby("layer")["relative"].max().tolist()


def test_ablate_patch_and_compare_take_and_give_tables(small: Digits, other_seed: nn.Module) -> None:
    first = measure(small.model, small.images, small.twins)
    chosen = first[first["layer"] == "5"]
    curves = ablate(small.model, small.images, small.twins, small.labels, chosen, ratios=(0.5,), draws=2)
    assert set(curves["selection"]) == {"top", "bottom", "random"}
    flips = patch(small.model, small.images, small.twins, small.labels, chosen, draws=2)
    assert flips["share"].between(0, 1).all()
    second = measure(other_seed, small.images, small.twins)
    both = compare({"a": first, "b": second})
    assert both["model"].tolist() == ["a"] * 3 + ["b"] * 3
    assert both["absolute"][0] == pytest.approx(first[first["layer"] == "0"]["absolute"].mean())


def test_a_part_of_the_neurons_is_not_taken_for_all(small: Digits) -> None:
    neurons = measure(small.model, small.images, small.twins)
    best = top_k(neurons, 3)
    for intervene in (ablate, patch):
        with pytest.raises(InputError, match=r"all neurons of 0 are needed"):
            intervene(small.model, small.images, small.twins, small.labels, best)
        with pytest.raises(InputError, match=r"draws: got 1"):
            intervene(small.model, small.images, small.twins, small.labels, neurons, draws=1)
    shuffled = neurons.sample(frac=1.0, random_state=0)
    settings = {"ratios": (0.2,), "draws": 2}
    one, other = (
        ablate(small.model, small.images, small.twins, small.labels, table, **settings).sort_values(
            ["layer", "selection"], ignore_index=True
        )
        for table in (neurons, shuffled)
    )
    columns = ["layer", "selection", "accuracy"]
    assert one[one["selection"] == "top"][columns].equals(other[other["selection"] == "top"][columns])


def test_noise_has_its_standard_error(small: Digits) -> None:
    table = measure(small.model, small.images, small.twins)
    assert (table["noise_error"] > 0).mean() > 0.9
    assert (table["noise_error"] < table["noise"]).mean() > 0.9


def test_a_permuted_network_is_matched_back(small: Digits) -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    permuted = nn.Sequential(*small.model[:5], nn.Linear(108, 20), nn.ReLU(), nn.Linear(20, 10)).eval()
    with torch.no_grad():
        permuted[5].weight.copy_(small.model[5].weight[order])
        permuted[5].bias.copy_(small.model[5].bias[order])
        permuted[7].weight.copy_(small.model[7].weight[:, order])
        permuted[7].bias.copy_(small.model[7].bias)
    layers = {"0": "0", "5": "5"}
    matches = {
        layer: match_neurons(found) for layer, found in correlate(small.model, permuted, layers, small.images).items()
    }
    permutation, correlation = matches["5"]
    alive = small.model[:6](small.images).std(0) > 0
    assert torch.equal(order[permutation][alive], torch.arange(20)[alive])
    assert correlation > 0.95
    tables = [measure(model, small.images, small.twins) for model in (small.model, permuted)]
    agreement = model_agreement(*tables, matches).set_index("layer")
    assert agreement.loc["5", "jaccard"] == 1.0
    assert agreement.loc["5", "rank_correlation"] == pytest.approx(1.0)
    assert agreement.loc["5", "unmatched"] < 1.0


def test_one_model_agrees_with_itself_under_another_condition(small: Digits) -> None:
    table = measure(small.model, small.images, small.twins)
    both = [table.assign(condition="a"), table.assign(condition="b")]
    agreement = condition_agreement(pd.concat(both))
    assert agreement["jaccard"].tolist() == [1.0] * 3
    assert (agreement["chance"] < 0.2).all()


def test_what_cannot_be_is_refused_by_name(small: Digits) -> None:
    with pytest.raises(InputError, match="adversarial"):
        measure(small.model, small.images, small.twins[:3])
    with pytest.raises(InputError, match="layers"):
        measure(small.model, small.images, small.twins, layers="nothing")
    with pytest.raises(InputError, match="by"):
        top_k(measure(small.model, small.images, small.twins), by="size")
    with pytest.raises(InputError, match="neurons"):
        compare({})


def test_images_outside_of_the_pixels_range_are_refused_by_name(small: Digits) -> None:
    wide = 255.0 * small.twins
    neurons = measure(small.model, small.images, small.twins)
    for refused in (
        lambda: measure(small.model, small.images, wide),
        lambda: ablate(small.model, small.images, wide, small.labels, neurons, draws=2),
        lambda: patch(small.model, small.images, wide, small.labels, neurons, draws=2),
    ):
        with pytest.raises(InputError, match=r"adversarial: got \(.*\); floating-point pixels must lie in \[0, 1\]"):
            refused()
    with pytest.raises(InputError, match="benign"):
        measure(small.model, 255.0 * small.images, small.twins)
