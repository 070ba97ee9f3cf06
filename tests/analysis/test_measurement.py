from __future__ import annotations

import pytest
import torch

from distsens.analysis import CLEAN, NOISE, SAVED, Measured, MeasurementPlan, make_pairs, measure_images, measured_rows
from distsens.attacks import attack_named, logits_of
from distsens.sensitivity import ActivationProbe, StatisticsMeter
from tests.analysis.digit_pairs import Digits


@pytest.fixture
def plan(small: Digits) -> MeasurementPlan:
    attacks = {"pgd": small.attack, "fgsm": attack_named("fgsm", small.attack.threat)}
    return MeasurementPlan(attacks, "linf", ("0", "2", "5"), 10, batch_size=7, kept_images=3)


def measured(small: Digits, plan: MeasurementPlan, rows: slice) -> Measured:
    numbers = torch.arange(len(small.images))
    return measure_images(small.model, small.images[rows], small.labels[rows], numbers[rows], plan)[0]


def test_shards_merge_to_what_one_worker_measures(small: Digits, plan: MeasurementPlan) -> None:
    whole = measured(small, plan, slice(0, 60))
    merged = measured(small, plan, slice(0, 14))  # whole batches, so that the very same forwards are made
    for rows in (slice(14, 35), slice(35, 60)):
        merged.merge(measured(small, plan, rows))
    assert (merged.images, merged.correct, merged.flipped) == (60, whole.correct, whole.flipped)
    for condition in plan.conditions:
        for layer, one in whole.meters[condition].compute().items():
            for field, value in vars(one).items():
                found = getattr(merged.meters[condition].compute()[layer], field)
                assert torch.allclose(found, value, rtol=1e-9), (condition, layer, field)
    assert all(torch.equal(merged.changed.images[layer], whole.changed.images[layer]) for layer in plan.layers)


def test_the_same_shards_in_the_same_order_give_the_same_bits(small: Digits, plan: MeasurementPlan) -> None:
    totals = []
    for _ in range(2):
        total = measured(small, plan, slice(0, 30))
        total.merge(measured(small, plan, slice(30, 60)))
        totals.append(total.meters["pgd"].compute()["2"])
    assert all(torch.equal(getattr(totals[0], field), value) for field, value in vars(totals[1]).items())


def test_sensitivity_is_between_the_images_and_the_twins_that_are_returned(
    small: Digits, plan: MeasurementPlan
) -> None:
    numbers = torch.arange(60)
    found, twins = measure_images(small.model, small.images, small.labels, numbers, plan)
    assert torch.equal(twins, make_pairs(small.model, small.images, small.labels, numbers, plan))
    meter = StatisticsMeter(10)
    outputs = []
    for images in (small.images, twins):
        probe = ActivationProbe[torch.Tensor](small.model, plan.layers)
        with probe, torch.no_grad():
            small.model(images)
        outputs.append(probe.outputs)
    meter.update(*outputs, small.labels)
    for layer, one in meter.compute().items():
        assert torch.allclose(found.meters["pgd"].compute()[layer].absolute, one.absolute, rtol=1e-4)
    right = logits_of(small.model, small.images).argmax(1) == small.labels
    still = logits_of(small.model, twins).argmax(1) == small.labels
    assert found.correct[CLEAN] == int(right.sum())
    assert found.correct["pgd"] == int((right & still).sum())


def test_noise_disturbs_less_than_the_attack_of_the_same_norm(small: Digits, plan: MeasurementPlan) -> None:
    found = measured(small, plan, slice(0, 60))
    assert found.correct[NOISE] > found.correct["pgd"]
    last = plan.layers[-1]
    assert found.meters[NOISE].compute()[last].absolute.mean() < found.meters["pgd"].compute()[last].absolute.mean()
    rows = {row["condition"]: row for row in measured_rows(found)}
    assert rows[CLEAN]["l2"] == 0
    assert rows["pgd"]["accuracy"] < rows[CLEAN]["accuracy"]


def test_saved_pairs_are_measured_without_an_attack(small: Digits) -> None:
    plan = MeasurementPlan({}, "linf", ("5",), 10, batch_size=16)
    found, twins = measure_images(small.model, small.images, small.labels, torch.arange(60), plan, pairs=small.twins)
    assert torch.equal(twins, small.twins)
    assert set(found.meters) == {SAVED, NOISE}
    assert found.attack_seconds < found.measure_seconds
