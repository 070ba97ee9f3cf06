from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch.nn import functional as F

from distsens.attacks import cross_entropy, dlr, kl_divergence, least_likely, margin, targeted_dlr
from distsens.errors import InputError

_LOGITS = hnp.arrays("float64", (4, 3), elements=st.floats(-30.0, 30.0)).map(torch.from_numpy)
_SPREAD_LOGITS = hnp.arrays("int64", (4, 6), elements=st.integers(-30, 30), unique=True).map(
    lambda values: torch.from_numpy(values).double() / 7.0
)


@given(_LOGITS)
def test_cross_entropy_is_minus_the_log_probability_of_the_label_of_each_image(logits: Tensor) -> None:
    labels = torch.tensor([0, 2, 1, 2])
    values = cross_entropy(logits, labels)
    torch.testing.assert_close(values, -logits.log_softmax(1)[torch.arange(4), labels])
    torch.testing.assert_close(values.mean(), F.cross_entropy(logits, labels))


@given(_LOGITS, _LOGITS)
def test_kl_divergence_is_the_batch_mean_of_pytorch_and_the_sum_of_its_definition(
    logits: Tensor, benign: Tensor
) -> None:
    values = kl_divergence(logits, benign)
    p, q = benign.softmax(1), logits.softmax(1)
    assert values.shape == (4,)
    torch.testing.assert_close(values, (p * (p.log() - q.log())).sum(1))
    torch.testing.assert_close(values.mean(), F.kl_div(logits.log_softmax(1), p, reduction="batchmean"))
    assert (values > -1e-12).all()
    torch.testing.assert_close(kl_divergence(benign, benign), torch.zeros(4, dtype=torch.float64))


@given(_LOGITS, _LOGITS)
def test_gradient_of_the_kl_divergence_is_the_difference_of_probabilities(logits: Tensor, benign: Tensor) -> None:
    logits = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kl_divergence(logits, benign).sum(), logits)
    torch.testing.assert_close(gradient, logits.detach().softmax(1) - benign.softmax(1))


def test_kl_divergence_of_certain_predictions_is_finite() -> None:
    certain = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    values = kl_divergence(certain.flip(1), certain)
    torch.testing.assert_close(values, torch.tensor([200.0, 200.0]))


@given(_LOGITS)
def test_the_margin_is_the_best_wrong_logit_minus_the_labels(logits: Tensor) -> None:
    labels = torch.tensor([0, 2, 1, 2])
    values = margin(logits, labels)
    expected = [
        max(row[k] for k in range(3) if k != label) - row[label]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert values.tolist() == expected
    wrong = logits.argmax(1) != labels
    assert (values[wrong] >= 0).all()
    assert (values[~wrong] <= 0).all()


def test_the_margins_gradient_is_one_at_the_rival_and_minus_one_at_the_label() -> None:
    logits = torch.tensor([[900.0, 1.0, 5.0], [0.0, 3.0, 7.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(margin(logits, torch.tensor([0, 1])).sum(), logits)
    assert gradient.tolist() == [[-1, 0, 1], [0, -1, 1]]


@given(_LOGITS)
def test_the_least_likely_class_is_that_of_the_smallest_probability(logits: Tensor) -> None:
    unused = torch.zeros(4, dtype=torch.int64)
    torch.testing.assert_close(least_likely(logits, unused), logits.log_softmax(1).amin(1))


@given(_SPREAD_LOGITS)
def test_the_dlr_losses_equal_their_definitions(logits: Tensor) -> None:
    labels, targets = torch.tensor([0, 2, 5, 3]), torch.tensor([4, 1, 0, 2])
    for row, label, target, value, towards in zip(
        logits.tolist(),
        labels.tolist(),
        targets.tolist(),
        dlr(logits, labels).tolist(),
        targeted_dlr(logits, labels, targets).tolist(),
        strict=True,
    ):
        ordered = sorted(row, reverse=True)
        rival = max(row[k] for k in range(6) if k != label)
        assert value == pytest.approx(-(row[label] - rival) / (ordered[0] - ordered[2]))
        assert towards == pytest.approx(-(row[label] - row[target]) / (ordered[0] - (ordered[2] + ordered[3]) / 2))


@given(_SPREAD_LOGITS, st.floats(0.01, 100.0), st.floats(-50.0, 50.0))
def test_neither_scale_nor_shift_of_the_logits_changes_a_dlr_loss(logits: Tensor, scale: float, shift: float) -> None:
    labels, targets = torch.tensor([0, 2, 5, 3]), torch.tensor([4, 1, 0, 2])
    changed = scale * logits + shift
    torch.testing.assert_close(dlr(changed, labels), dlr(logits, labels))
    torch.testing.assert_close(targeted_dlr(changed, labels, targets), targeted_dlr(logits, labels, targets))
    assert ((dlr(logits, labels) > 0.0) == (logits.argmax(1) != labels)).all()


def test_dlr_losses_of_equal_logits_are_zero_with_a_finite_gradient() -> None:
    logits, labels = torch.ones(2, 5, requires_grad=True), torch.tensor([0, 3])
    for values in (dlr(logits, labels), targeted_dlr(logits, labels, labels + 1)):
        assert values.tolist() == [0.0, 0.0]
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert gradient.isfinite().all()


def test_dlr_losses_of_too_few_classes_are_refused() -> None:
    labels = torch.tensor([0, 1])
    with pytest.raises(InputError, match="classes: got 2; the DLR loss needs 3 classes or more"):
        dlr(torch.zeros(2, 2), labels)
    with pytest.raises(InputError, match="classes: got 3; the targeted DLR loss needs 4 classes or more"):
        targeted_dlr(torch.zeros(2, 3), labels, 1 - labels)
