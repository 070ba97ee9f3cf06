from __future__ import annotations

import pandas as pd
import pytest
import torch

from distsens.analysis import (
    ALL_LAYERS,
    Intervened,
    InterventionPlan,
    ablation_curves,
    ablation_table,
    completeness_table,
    contribution_table,
    flip_curves,
    intervene,
    measure,
    neurons_to_flip,
    patching_table,
)
from distsens.attacks import logits_of
from tests.analysis.digit_pairs import Digits

SIZES = {"0": 8, "2": 12, "5": 20}


@pytest.fixture(scope="module")
def plan(small: Digits) -> InterventionPlan:
    neurons = measure(small.model, small.images, small.twins)
    parts = dict(list(neurons.groupby("layer", sort=False)))
    return InterventionPlan(
        {layer: torch.tensor(part["absolute"].to_numpy()) for layer, part in parts.items()},
        {layer: torch.tensor(part["output"].to_numpy()) for layer, part in parts.items()},
        ratios=(0.1, 1.0), draws=3, steps=8, batch_size=25,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(small: Digits, plan: InterventionPlan) -> Intervened:
    return intervene(small.model, small.images, small.twins, small.labels, plan)


def test_every_neuron_set_back_undoes_the_attack_and_zeros_undo_the_network(small: Digits, found: Intervened) -> None:
    clean = int((logits_of(small.model, small.images).argmax(1) == small.labels).sum())
    constant = small.model[6:](torch.zeros(1, 20)).argmax().item()
    of_constant = int((small.labels == constant).sum())
    for key, correct in found.correct.items():
        if key.ratio == 1.0 and key.replacement == "benign":
            assert correct == clean, key
        if key.ratio == 1.0 and key.replacement == "zero" and key.layer == "5":
            assert correct == of_constant, key
    assert found.right == clean
    assert found.flipped > 20
    assert found.attacked < found.right


def test_shards_merge_to_what_one_worker_counts(small: Digits, plan: InterventionPlan, found: Intervened) -> None:
    merged = Intervened()
    for rows in (slice(0, 25), slice(25, 50), slice(50, 60)):
        merged.merge(intervene(small.model, small.images[rows], small.twins[rows], small.labels[rows], plan))
    assert merged.correct == found.correct
    assert merged.first == found.first
    for layer, sums in found.contributions.items():
        assert torch.allclose(merged.contributions[layer].contribution, sums.contribution, atol=1e-5)


def test_the_curves_give_every_layer_with_intervals_and_ten_draws_one_mean(found: Intervened) -> None:
    curves = ablation_curves(ablation_table(found, SIZES))
    assert set(curves["layer"]) == {*SIZES, ALL_LAYERS}
    assert (curves["low"] <= curves["accuracy"]).all()
    assert (curves["accuracy"] <= curves["high"]).all()
    assert set(curves.loc[curves["selection"] == "random", "draws"]) == {3}
    one = curves.query("layer == '2' and replacement == 'benign' and selection == 'random' and ratio == 0.1").iloc[0]
    counts = [n for key, n in found.correct.items() if key[:3] == ("2", "benign", "random") and key.ratio == 0.1]
    assert one["accuracy"] == pytest.approx(sum(counts) / len(counts) / 60)
    assert one["neurons"] == 2


def test_all_adversarial_values_of_a_layer_flip_all_that_the_attack_flips(found: Intervened) -> None:
    table = patching_table(found, SIZES)
    assert table.groupby(["layer", "selection", "draw"])["flipped"].sum().eq(found.flipped).all()
    curves = flip_curves(table)
    ends = curves.groupby(["layer", "selection"])["share"].max()
    assert ends.eq(1.0).all()
    needed = neurons_to_flip(curves)
    assert (needed["half"] <= needed["layer_neurons"]).all()


def test_contributions_sum_to_the_change_of_the_margin(found: Intervened) -> None:
    completeness = completeness_table(found)
    assert (completeness["gap"] < 0.1).all()
    assert completeness["through"].tolist() == pytest.approx([1.0] * 3, abs=1e-3)
    table = contribution_table(found)
    assert table.groupby("layer")["part"].sum().tolist() == pytest.approx([1.0] * 3)
    assert table.groupby("layer")["contribution"].sum().tolist() == pytest.approx(
        [found.contributions[layer].contribution.sum().item() / 60 for layer in sorted(SIZES)]
    )


def test_only_what_is_asked_for_is_done(small: Digits, plan: InterventionPlan) -> None:
    rows = slice(0, 5)
    part = intervene(small.model, small.images[rows], small.twins[rows], small.labels[rows], plan, "patch")
    assert part.first
    assert not part.correct
    assert not part.contributions
    assert isinstance(patching_table(Intervened(), {}), pd.DataFrame)
