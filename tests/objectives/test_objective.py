from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distsens.attacks import AttackName, GradientAttack, Threat, attack_named
from distsens.errors import InputError
from distsens.objectives import Objective, alp, fast_at, free_at, mart, nat, pgd_at, standard, trades
from distsens.randomness import normal, sample_keys, uniform

EPS, STEP, STEPS = 0.1, 0.03, 5
ATTACK = GradientAttack(Threat("linf", EPS), STEPS, STEP, random_start="normal")
ALL: dict[str, Callable[..., Objective]] = {
    one.__name__: one for one in (standard, nat, pgd_at, fast_at, free_at, alp, trades, mart)
}
ON_CROSS_ENTROPY = [name for name in ALL if name != "trades"]
SMOOTHED = [name for name in ALL if name != "mart"]


def ascended(network: nn.Module, images: Tensor, offsets: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Plain PGD on the summed loss of the logits, from a start beside the image."""
    twins = (images + offsets).clamp(0, 1)
    for _ in range(STEPS):
        twins.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(network(twins)), twins)
        moved = twins.detach() + STEP * gradient.sign()
        twins = torch.minimum(torch.maximum(moved, images - EPS), images + EPS).clamp(0, 1)
    return twins


def divergence(benign: Tensor, adversarial: Tensor) -> Tensor:
    """KL(softmax(benign) || softmax(adversarial)) per image, by its definition."""
    p, q = benign.softmax(1), adversarial.softmax(1)
    return (p * (p / q).log()).sum(1)


@pytest.mark.parametrize("name", ON_CROSS_ENTROPY)
def test_twins_raise_the_cross_entropy(
    name: str, network: nn.Module, images: Tensor, labels: Tensor, keys: Tensor
) -> None:
    twins = ALL[name]().generate(ATTACK, network, images, labels, keys)
    offsets = 0.001 * normal(sample_keys(keys, "start", 0), images.shape[1:])
    expected = ascended(network, images, offsets, lambda logits: -logits.log_softmax(1)[range(12), labels].sum())
    torch.testing.assert_close(twins, expected, rtol=0, atol=1e-6)


def test_twins_of_trades_raise_the_divergence_from_the_benign_prediction(
    network: nn.Module, images: Tensor, labels: Tensor, keys: Tensor
) -> None:
    benign = network(images).detach()
    # Right beside the image the divergence is so flat that rounding decides about the signs of its slopes.
    twins = trades(6.0).generate(replace(ATTACK, random_start="uniform"), network, images, labels, keys)
    offsets = EPS * (2.0 * uniform(sample_keys(keys, "start", 0), images.shape[1:]) - 1.0)
    expected = ascended(network, images, offsets, lambda logits: divergence(benign, logits).sum())
    torch.testing.assert_close(twins, expected, rtol=0, atol=1e-6)

    with torch.no_grad():
        by_divergence = divergence(benign, network(twins))
        by_labels = divergence(benign, network(pgd_at().generate(ATTACK, network, images, labels, keys)))
    assert by_divergence.sum() > by_labels.sum()


def test_twins_of_trades_do_not_depend_on_the_labels(
    network: nn.Module, images: Tensor, labels: Tensor, keys: Tensor
) -> None:
    twins = [trades(6.0).generate(ATTACK, network, images, y, keys) for y in (labels, labels.roll(1))]
    assert torch.equal(*twins)


@pytest.mark.parametrize("name", ALL)
def test_generating_twins_leaves_the_model_in_training_mode_and_without_gradients(
    name: str, network: nn.Module, images: Tensor, labels: Tensor, keys: Tensor
) -> None:
    network.train()
    twins = ALL[name]().generate(ATTACK, network, images, labels, keys)
    assert not twins.requires_grad
    assert (twins - images).abs().max() <= EPS + 1e-6
    assert all(module.training for module in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("name", ALL)
def test_the_logits_that_an_objective_declares_are_the_ones_it_needs(name: str, labels: Tensor) -> None:
    objective = ALL[name]()
    logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(3))
    benign = logits if objective.uses_benign else None
    adversarial = logits.flip(0) if objective.uses_adversarial else None
    alone = objective.loss(benign, adversarial, labels)
    both = objective.loss(logits, logits.flip(0), labels)
    assert alone.keys() == both.keys()
    assert all(torch.equal(alone[name], both[name]) for name in both)
    if objective.uses_benign:
        with pytest.raises(ValueError, match="not computed"):
            objective.loss(None, adversarial, labels)
    if objective.uses_adversarial:
        with pytest.raises(ValueError, match="not computed"):
            objective.loss(benign, None, labels)


HUGE = 1e4
EXTREME = st.lists(st.floats(-HUGE, HUGE, width=32) | st.sampled_from([-HUGE, 0.0, HUGE]), min_size=3, max_size=3)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40)
@example(benign=[0, 0, HUGE], adversarial=[HUGE, 0, 0], label=0)
@example(benign=[HUGE, 0, 0], adversarial=[0, 0, HUGE], label=0)
@given(benign=EXTREME, adversarial=EXTREME, label=st.integers(0, 2))
def test_loss_and_gradients_stay_finite_however_sure_the_predictions_are(
    name: str, benign: list[float], adversarial: list[float], label: int
) -> None:
    logits = [torch.tensor([values], requires_grad=True) for values in (benign, adversarial)]
    parts = ALL[name]().loss(*logits, torch.tensor([label]))
    gradients = torch.autograd.grad(torch.stack(list(parts.values())).sum(), logits, allow_unused=True)
    assert all(values.shape == (1,) for values in parts.values())
    assert all(values.isfinite().all() for values in parts.values())
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("name", SMOOTHED)
def test_label_smoothing_changes_the_cross_entropies_and_nothing_else(name: str, labels: Tensor) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = {"benign": torch.randn(12, 5, generator=generator), "adversarial": torch.randn(12, 5, generator=generator)}
    hard = ALL[name]().loss(*logits.values(), labels)
    smooth = ALL[name](label_smoothing=0.2).loss(*logits.values(), labels)
    assert hard.keys() == smooth.keys()
    for part, values in hard.items():
        expected = values
        if part.endswith("_ce"):
            surprises = -logits[part.removesuffix("_ce")].log_softmax(1)
            weight = values / surprises[range(12), labels]
            expected = weight * (0.8 * surprises[range(12), labels] + 0.2 * surprises.mean(1))
        torch.testing.assert_close(smooth[part], expected)


@pytest.mark.parametrize("name", ["fgsm", "bim", "mim", "pgd", "step_ll", "cw_pgd"])
def test_a_divergence_that_is_least_at_the_image_is_not_raised_from_there_nor_by_another_loss(
    name: AttackName, network: nn.Module, images: Tensor, labels: Tensor, keys: Tensor
) -> None:
    attack = attack_named(name, Threat("linf", EPS), steps=2, random_start="none")
    with pytest.raises(InputError, match=r"^attack\.random_start: got 'none'; uniform or normal") as raised:
        trades().generate(attack, network, images, labels, keys)
    assert "\n" not in str(raised.value)
    if name == "cw_pgd":
        with pytest.raises(InputError, match=r"^attack\.loss: got 'margin'; none"):
            trades().generate(replace(attack, random_start="uniform"), network, images, labels, keys)
    for objective in ON_CROSS_ENTROPY:
        twins = ALL[objective]().generate(attack, network, images, labels, keys)
        assert (twins != images).flatten(1).any(1).all(), "the others have a gradient there"


@pytest.mark.parametrize("name", ["fast_fgsm", "pgd"])
def test_it_is_raised_from_beside_the_image(
    name: AttackName, network: nn.Module, images: Tensor, labels: Tensor, keys: Tensor
) -> None:
    twins = trades().generate(attack_named(name, Threat("linf", EPS), steps=2), network, images, labels, keys)
    assert (divergence(network(images), network(twins)) > 1e-6).all()
