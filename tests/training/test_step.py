from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import GradientAttack, Threat
from distsens.objectives import Objective, pgd_at, standard, trades
from distsens.sensitivity import Stabilizer, Stabilizing, match_layers, neuron_counts
from distsens.training import Batch, TrainingStep

WEIGHT = 0.7
OBJECTIVES: dict[str, Callable[[], Objective]] = {"standard": standard, "pgd_at": pgd_at, "trades": lambda: trades(6.0)}
ATTACK = GradientAttack(Threat("linf", 0.1), steps=3, step_size=0.04)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 16, 7), nn.Tanh(), nn.Linear(7, 4))


def batch(seed: int = 0, count: int = 6) -> Batch:
    pixels = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return Batch(pixels, torch.arange(count) % 4, torch.arange(count), global_size=count)


def step_of(model: nn.Module, objective: Objective, settings: Stabilizing | None = None, **parts: Any) -> TrainingStep:
    """A step of plain gradient descent with learning rate 1, whose change of the parameters is the gradient."""
    layers = match_layers(model, "auto", torch.zeros(1, 1, 6, 6))
    stabilizer = Stabilizer(settings, neuron_counts(model, layers, torch.zeros(1, 1, 6, 6))) if settings else None
    return TrainingStep(
        model, torch.optim.SGD(model.parameters(), lr=1.0), objective, ATTACK, stabilizer, layers if settings else (),
        **parts,
    )  # fmt: skip


def select(step: TrainingStep) -> None:
    """Let the stabilizer see one batch and select, without a change of the parameters."""
    before = copy.deepcopy(step.model.state_dict())
    step(batch(seed=9), sns_weight=0.0)
    step.model.load_state_dict(before)
    assert step.stabilizer is not None
    step.stabilizer.refresh()


def changed(step: TrainingStep, one: Batch, **now: float | None) -> list[Tensor]:
    """What one step of learning rate 1 takes off the parameters."""
    before = [p.detach().clone() for p in step.model.parameters()]
    step(one, **now)
    return [a - p.detach() for a, p in zip(before, step.model.parameters(), strict=True)]


class Seen:
    """The training forwards of a model: what went in. The attack's are in eval mode."""

    def __init__(self, model: nn.Module) -> None:
        self.inputs: list[Tensor] = []
        model.register_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        if module.training:
            self.inputs.append(inputs[0].detach().clone())


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([z.logsumexp(0) - z[y] for z, y in zip(logits, labels, strict=True)])


def plain_objective(name: str, benign: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
    """Mean loss over the batch by the papers' formulas."""
    if name == "standard":
        return cross_entropies(benign, labels).mean()
    if name == "pgd_at":
        return cross_entropies(adversarial, labels).mean()
    p, q = benign.softmax(1), adversarial.softmax(1)
    return (cross_entropies(benign, labels) + 6.0 * (p * (p / q).log()).sum(1)).mean()


def plain_sns(model: nn.Module, x: Tensor, twins: Tensor, omega: dict[str, Tensor]) -> Tensor:
    """Mean over layers of the mean over selected neurons of the mean over pairs of the mean |change|, by loops."""
    per_layer = []
    for layer, neurons in omega.items():
        part = model[: int(layer) + 1]
        f, g = part(x), part(twins)
        per_neuron = [
            torch.stack([(f[i, m] - g[i, m]).abs().mean() for i in range(len(x))]).mean() for m in neurons.tolist()
        ]
        per_layer.append(torch.stack(per_neuron).mean())
    return torch.stack(per_layer).mean()


@pytest.mark.parametrize("sns", [None, Stabilizing(ratio=0.3, pairs=1.0)], ids=["alone", "with SNS"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_that_of_the_formula_in_plain_torch(name: str, sns: Stabilizing | None) -> None:
    model, one = network().train(), batch()
    step = step_of(model, OBJECTIVES[name](), sns)
    if sns:
        select(step)
    reference = copy.deepcopy(model)
    twins = step.objective.generate(ATTACK, reference, one.images, one.labels, one.keys)

    loss = plain_objective(name, reference(one.images), reference(twins), one.labels)
    if step.stabilizer:
        assert {layer: len(omega) for layer, omega in step.stabilizer.selected.items()} == {"0": 2, "3": 3}
        loss = loss + WEIGHT * plain_sns(reference, one.images, twins, step.stabilizer.selected)
    expected = torch.autograd.grad(loss, list(reference.parameters()))
    for found, wanted in zip(changed(step, one, sns_weight=WEIGHT), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sns", [None, Stabilizing(ratio=0.3, pairs=1.0)], ids=["alone", "with SNS"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_forward_takes_the_halves_that_are_needed(name: str, sns: Stabilizing | None) -> None:
    model, one = network().train(), batch()
    step, seen = step_of(model, OBJECTIVES[name](), sns), Seen(model)
    twins = step.objective.generate(ATTACK, model, one.images, one.labels, one.keys)
    step(one, sns_weight=0.0 if sns else None)
    (inputs,) = seen.inputs
    halves = {"standard": [one.images], "pgd_at": [twins], "trades": [one.images, twins]}
    assert torch.equal(inputs, torch.cat([one.images, twins] if sns else halves[name]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_sums_are_those_of_the_share(name: str) -> None:
    model, one = network().train(), batch()
    step = step_of(model, OBJECTIVES[name](), Stabilizing(pairs=1.0))
    select(step)
    reference = copy.deepcopy(model)
    twins = step.objective.generate(ATTACK, reference, one.images, one.labels, one.keys)
    result = step(one, sns_weight=WEIGHT)

    losses = {key: float(value) for key, value in result.sums.items() if key.startswith("loss/")}
    assert (
        list(losses)
        == {
            "standard": ["loss/benign_ce", "loss/stabilizing"],
            "pgd_at": ["loss/adversarial_ce", "loss/stabilizing"],
            "trades": ["loss/benign_ce", "loss/robust_kl", "loss/stabilizing"],
        }[name]
    )
    with torch.no_grad():
        benign, adversarial = reference(one.images), reference(twins)
        sns = plain_sns(reference, one.images, twins, step.stabilizer.selected)
        whole = plain_objective(name, benign, adversarial, one.labels) + WEIGHT * sns
    assert sum(losses.values()) / 6 == pytest.approx(whole.item(), rel=1e-5)
    assert losses["loss/stabilizing"] / 6 == pytest.approx(WEIGHT * sns.item(), rel=1e-4)
    assert result.sums["images"] == 6
    assert result.sums["gradient_evaluations"] == 6 * 3
    assert 0 < result.sums["attack_seconds"] < result.sums["seconds"]
    correct = {"correct/benign": benign, "correct/adversarial": adversarial}
    used = {"standard": ["correct/benign"], "pgd_at": ["correct/adversarial"], "trades": list(correct)}[name]
    assert [key for key in result.sums if key.startswith("correct/")] == used
    for key in used:
        assert result.sums[key] == (correct[key].argmax(1) == one.labels).sum()


def test_the_stabilizing_part_is_absent_without_weight_or_selection() -> None:
    step = step_of(network().train(), pgd_at(), Stabilizing(pairs=1.0))
    assert "loss/stabilizing" not in step(batch(), sns_weight=WEIGHT).sums
    step.stabilizer.refresh()
    assert "loss/stabilizing" not in step(batch(), sns_weight=0.0).sums
    assert "loss/stabilizing" in step(batch(), sns_weight=WEIGHT).sums


@pytest.mark.parametrize("every", [2, 3, 6])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_sns_takes_every_nth_pair_and_forwards_only_them_beside_what_the_objective_needs(name: str, every: int) -> None:
    model, one = network().train(), batch()
    step = step_of(model, OBJECTIVES[name](), Stabilizing(ratio=0.3, pairs=1 / every))
    select(step)
    reference = copy.deepcopy(model)
    twins = step.objective.generate(ATTACK, reference, one.images, one.labels, one.keys)
    loss = plain_objective(name, reference(one.images), reference(twins), one.labels)
    loss = loss + WEIGHT * plain_sns(reference, one.images[::every], twins[::every], step.stabilizer.selected)
    expected = torch.autograd.grad(loss, list(reference.parameters()))

    seen = Seen(model)
    for found, wanted in zip(changed(step, one, sns_weight=WEIGHT), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    forwarded = {
        "standard": [one.images, twins[::every]],
        "pgd_at": [one.images[::every], twins],
        "trades": [one.images, twins],
    }
    assert torch.equal(seen.inputs[0], torch.cat(forwarded[name]))
    attacked = len(twins[::every]) if name == "standard" else 6
    assert step(one, sns_weight=WEIGHT).sums["gradient_evaluations"] == 3 * attacked


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sns_that_sleeps_costs_nothing_and_measures_nothing(name: str) -> None:
    steps, inputs = [], []
    for sns in (None, Stabilizing()):
        model = network().train()
        step, seen = step_of(model, OBJECTIVES[name](), sns), Seen(model)
        steps.append(changed(step, batch(), sns_weight=None))
        inputs.append(seen.inputs)
        if step.stabilizer:
            step.stabilizer.refresh()
            assert step.stabilizer.selected == {}
    for one, other in (steps, inputs):
        assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


def test_standard_training_generates_nothing() -> None:
    result = step_of(network().train(), standard())(batch())
    assert result.sums["gradient_evaluations"] == 0
    assert result.sums["attack_seconds"] == 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_share_weighs_what_it_is_of_the_global_batch(name: str) -> None:
    one, found, losses = batch(), [], []
    for shares in ([slice(0, 6)], [slice(0, 1), slice(1, 3), slice(3, 6)]):  # the second of three has no pair
        total, loss = None, 0.0
        for share in shares:
            step = step_of(network().train(), OBJECTIVES[name](), Stabilizing(ratio=0.3, pairs=1 / 3))
            select(step)
            part = Batch(one.images[share], one.labels[share], one.keys[share], global_size=6, start=share.start)
            before = [p.detach().clone() for p in step.model.parameters()]
            loss += float(step(part, sns_weight=WEIGHT).sums["loss/stabilizing"])
            taken = [b - p.detach() for b, p in zip(before, step.model.parameters(), strict=True)]
            total = taken if total is None else [a + b for a, b in zip(total, taken, strict=True)]
        found.append(total)
        losses.append(loss)
    for alone, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-6)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_eps_factor_shrinks_the_ball_and_the_steps() -> None:
    for factor in (0.0, 0.5):
        model = network().train()
        step, seen, one = step_of(model, pgd_at()), Seen(model), batch()
        step(one, eps_factor=factor)
        assert (seen.inputs[0] - one.images).abs().max().item() == pytest.approx(0.1 * factor, abs=1e-6)


def test_clipping_shortens_a_long_gradient_and_leaves_a_short_one() -> None:
    plain = changed(step_of(network().train(), pgd_at()), batch())
    norm = math.sqrt(sum((p * p).sum().item() for p in plain))
    for limit in (norm / 3, norm * 3):
        step = step_of(network().train(), pgd_at(), gradient_clip=limit)
        found = changed(step, batch())
        for short, long in zip(found, plain, strict=True):
            torch.testing.assert_close(short, long * min(1.0, limit / norm), rtol=1e-4, atol=1e-6)


def test_the_gradient_norm_is_told_before_clipping() -> None:
    plain = changed(step_of(network().train(), pgd_at()), batch())
    norm = math.sqrt(sum((p * p).sum().item() for p in plain))
    result = step_of(network().train(), pgd_at(), gradient_clip=norm / 10)(batch())
    assert result.gradient_norm == pytest.approx(norm, rel=1e-4)
    assert result.finite


def overflow(model: nn.Sequential) -> Batch:
    with torch.no_grad():
        model[5].weight.fill_(3e38)
    return batch()


def infinite_loss_with_a_finite_gradient(model: nn.Sequential) -> Batch:
    with torch.no_grad():
        model[5].bias[0] = -torch.inf
    return batch()


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("poison", [overflow, infinite_loss_with_a_finite_gradient])
def test_a_loss_that_is_not_finite_leaves_the_parameters_untouched(
    poison: Callable[[nn.Module], Batch], clip: float | None
) -> None:
    model = network().train()
    step = step_of(model, pgd_at(), gradient_clip=clip)
    step.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    assert step(batch()).finite
    bad = poison(model)
    before = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
    assert not step(bad).finite
    torch.testing.assert_close((model.state_dict(), step.optimizer.state_dict()), before, rtol=0, atol=0)


def normed() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.Tanh(), nn.Flatten(), nn.Linear(80, 7), nn.BatchNorm1d(7), nn.Tanh(),
        nn.Linear(7, 4),
    )  # fmt: skip


def in_turn(model: nn.Module, *halves: Tensor) -> list[Tensor]:
    return [model(half) for half in halves]


def at_once(model: nn.Module, *halves: Tensor) -> list[Tensor]:
    return list(model(torch.cat(halves)).split([len(half) for half in halves]))


@pytest.mark.parametrize("every", [None, 1, 3], ids=["without SNS", "all pairs", "every third pair"])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *itertools.product(OBJECTIVES, ["joint", "separate"]),
        ("standard", "benign"),
        ("pgd_at", "adversarial"),
        ("trades", "benign"),
        ("trades", "adversarial"),
    ],
)
def test_batch_norm_sees_the_halves_as_it_is_told(name: str, how: str, every: int | None) -> None:
    """Two forwards of a copy, or one, are what a step's forward is to amount to; running statistics as well."""
    objective, one = OBJECTIVES[name](), batch()
    sns = Stabilizing(ratio=0.3, pairs=1 / every) if every else None
    model = normed().train()
    step = step_of(model, objective, sns, batch_norm=how)
    reference = copy.deepcopy(model)
    twins = objective.generate(ATTACK, reference, one.images, one.labels, one.keys)
    chosen = slice(None, None, every) if every else slice(0)
    benign = one.images if objective.uses_benign else one.images[chosen]
    adversarial = twins if objective.uses_adversarial else twins[chosen]
    halves = [half for half in (benign, adversarial) if len(half)]
    logits = (at_once if how == "joint" else in_turn)(reference, *halves)
    loss = plain_objective(name, logits[0], logits[-1], one.labels)
    expected = torch.autograd.grad(loss, list(reference.parameters()))
    if how in ("adversarial", "benign"):
        reference = copy.deepcopy(model)
        reference({"adversarial": adversarial, "benign": benign}[how])

    for found, wanted in zip(changed(step, one, sns_weight=0.0 if sns else None), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dict(model.named_buffers()), dict(reference.named_buffers()))


@pytest.mark.parametrize("sns", [None, Stabilizing(ratio=0.3, pairs=1.0)], ids=["alone", "with SNS"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_with_awp_the_gradient_is_that_at_the_perturbed_weights(name: str, sns: Stabilizing | None) -> None:
    gamma, model, one = 0.2, network().train(), batch()
    step = step_of(model, OBJECTIVES[name](), sns)
    if sns:
        select(step)
    twins = step.objective.generate(ATTACK, model, one.images, one.labels, one.keys)

    def gradient(of: nn.Module) -> list[Tensor]:
        loss = plain_objective(name, of(one.images), of(twins), one.labels)
        if step.stabilizer:
            loss = loss + WEIGHT * plain_sns(of, one.images, twins, step.stabilizer.selected)
        return list(torch.autograd.grad(loss, list(of.parameters())))

    perturbed = copy.deepcopy(model)
    plain = gradient(copy.deepcopy(model))
    with torch.no_grad():
        for w, g in zip(perturbed.parameters(), plain, strict=True):
            if w.ndim > 1:
                w += gamma * g * math.sqrt((w * w).sum()) / math.sqrt((g * g).sum())
    expected = gradient(perturbed)
    for found, wanted in zip(changed(step, one, sns_weight=WEIGHT, awp_gamma=gamma), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(expected[0], plain[0], rtol=1e-2)


def test_awp_tells_measures_and_tracks_what_is_at_the_weights_themselves() -> None:
    results, buffers, measured = [], [], []
    for gamma in (0.0, 0.5):
        model = normed().train()
        step = step_of(model, trades(6.0), Stabilizing(pairs=0.5))
        select(step)
        sums = step(batch(), sns_weight=WEIGHT, awp_gamma=gamma).sums
        results.append({name: float(value) for name, value in sums.items() if "seconds" not in name})
        buffers.append(dict(model.named_buffers()))
        step.stabilizer.refresh()
        measured.append(step.stabilizer.state_dict())
    for plain, perturbed in (results, buffers, measured):
        torch.testing.assert_close(perturbed, plain, rtol=0, atol=0)


def test_awp_restores_the_weights_exactly() -> None:
    model = network().train()
    step = step_of(model, pgd_at())
    step.optimizer.param_groups[0]["lr"] = 0.0
    before = copy.deepcopy(model.state_dict())
    step(batch(), awp_gamma=0.3)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_step_leaves_no_hooks_on_the_model() -> None:
    model = network().train()
    step = step_of(model, trades(6.0), Stabilizing(pairs=1.0))
    step(batch())
    with pytest.raises(RuntimeError):  # also when the forward fails
        step(replace(batch(), images=torch.zeros(6, 2, 6, 6)))
    hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks)]
    assert hooks == []
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bf16_stays_close_to_fp32_and_keeps_fp32_weights(name: str) -> None:
    found = []
    for precision in (None, torch.bfloat16):
        model = network().train()
        step = step_of(model, OBJECTIVES[name](), Stabilizing(pairs=1.0), precision=precision)
        select(step)
        found.append(torch.cat([part.flatten() for part in changed(step, batch(), sns_weight=WEIGHT)]))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not torch.equal(*found)  # bf16 it was
    assert torch.cosine_similarity(*found, dim=0) > 0.999


# Dropout.


def dropped() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout2d(0.5), nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 24), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(24, 4),
    )  # fmt: skip


@pytest.mark.parametrize("pairs", [1.0, 0.5])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_with_dropout_equal_pairs_are_not_sensitive_at_all(name: str, pairs: float) -> None:
    step = step_of(dropped(), OBJECTIVES[name](), Stabilizing(ratio=0.5, pairs=pairs))
    still = GradientAttack(Threat("linf", 0.0), 1, 0.0, random_start="none")
    step.attack = still
    step.begin_epoch()
    assert not any(step.unshared_noise(batch().images).values())
    for _ in range(2):
        one = batch()
        twins = one.images if step.objective.uses_adversarial else one.images[step.stabilizer.pairs(0, 8)]
        result = step.descend(one, twins, sns_weight=1.0)
        assert step.stabilizer is not None
        step.stabilizer.refresh()
        assert not any(values.any() for values in step.stabilizer.sensitivity().values())
    assert result.sums["loss/stabilizing"] == 0.0


def test_noise_that_pairs_do_not_share_is_told() -> None:
    class Chosen(nn.Module):
        """Draws from probabilities that the images have, which the halves cannot share."""

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.bernoulli(torch.sigmoid(x)) if self.training else x

    model = nn.Sequential(nn.Flatten(), Chosen(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))
    step = step_of(model, OBJECTIVES["pgd_at"](), Stabilizing(pairs=1.0))
    state = copy.deepcopy(model.state_dict())
    assert 0.1 < step.unshared_noise(batch().images)["2"] < 2.0
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert step.stabilizer is not None
    assert not step.stabilizer.selected
