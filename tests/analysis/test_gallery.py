from __future__ import annotations

import numpy as np
import pytest
import torch

from distsens.analysis import MeasurementPlan, look, measure_images, neuron_table, numbers_in, wanted_sights
from tests.analysis.digit_pairs import Digits


def test_sights_are_the_images_that_move_a_neuron_most(small: Digits) -> None:
    plan = MeasurementPlan({"pgd": small.attack}, "linf", ("2", "5"), 10, batch_size=25, kept_images=3)
    numbers = torch.arange(60)
    measured, twins = measure_images(small.model, small.images, small.labels, numbers, plan)
    neurons = neuron_table(measured.meters, 0.1)
    wanted = wanted_sights(neurons, measured.changed, measured.activated, 2, 3)
    seen = torch.tensor(numbers_in(wanted))
    sights = look(small.model, small.images[seen], twins[seen], small.labels[seen], seen, wanted, 7)
    assert len(sights) == 2 * 2 * 2 * 3  # layers, neurons, reasons, images

    outputs = {"2": small.model[:3], "5": small.model[:6]}
    for layer in ("2", "5"):
        with torch.no_grad():
            before, after = (outputs[layer](images).flatten(2) if layer == "2" else outputs[layer](images)[..., None]
                             for images in (small.images, twins))  # fmt: skip
        best = neurons[(neurons["layer"] == layer) & (neurons["rank"] <= 2)]["neuron"].tolist()
        assert {one.neuron for one in sights if one.layer == layer} == set(best)
        for neuron in best:
            some = [one for one in sights if (one.layer, one.neuron) == (layer, neuron)]
            changes = (before - after).abs().mean(2)[:, neuron]
            assert [one.image for one in some if one.why == "changed"] == changes.topk(3).indices.tolist()
            assert [one.image for one in some if one.why == "activated"] == (
                before.mean(2)[:, neuron].topk(3).indices.tolist()
            )
            for one in some:
                assert np.allclose(one.before.ravel(), before[one.image, neuron], atol=1e-5)
                assert np.allclose(one.after.ravel(), after[one.image, neuron], atol=1e-5)
                assert np.array_equal(one.benign, small.images[one.image].numpy())
                assert one.label == small.labels[one.image]
    assert {one.before.shape for one in sights} == {(3, 3), (1, 1)}
    with torch.no_grad():
        predicted = small.model(twins).argmax(1)
    assert all(one.adversarial_prediction == predicted[one.image] for one in sights)


def test_ties_and_few_images_are_taken_as_they_come(small: Digits) -> None:
    plan = MeasurementPlan({}, "linf", ("5",), 0, kept_images=4)
    two = slice(0, 2)
    measured, _ = measure_images(
        small.model, small.images[two], small.labels[two], torch.arange(2), plan, small.images[two]
    )
    wanted = wanted_sights(neuron_table(measured.meters, 0.1), measured.changed, measured.activated, 1, 4)
    (reasons,) = wanted["5"].values()
    assert reasons["changed"] == [0, 1]  # nothing changed: the smaller number first
    assert sorted(reasons["activated"]) == [0, 1]
    assert measured.meters["saved pairs"].compute()["5"].absolute.tolist() == pytest.approx([0.0] * 20)
