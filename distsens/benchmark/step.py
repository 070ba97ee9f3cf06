"""A step of adversarial training against ART's, and against a plain PyTorch loop for TRADES."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distsens import assembly
from distsens.benchmark.finding import Finding
from distsens.benchmark.peers import MODULES, art_madry_step
from distsens.benchmark.rounds import Timings, median_seconds, ratios, take_turns
from distsens.benchmark.subject import Subject
from distsens.sensitivity import neuron_counts
from distsens.training import Batch, TrainingState

_BETA = 6.0
_PGD_AT_TARGET, _TRADES_TARGET = 3.0, 2.5
_TRADES = {"objective": {"name": "trades", "beta": _BETA}}


def measure_step(subject: Subject, rounds: int) -> list[Finding]:
    """Whole steps, from a batch on the device to updated weights: ours as precise as wanted, the others in float32."""
    contenders = {
        "distsens PGD-AT": own_step(subject, subject.low),
        "distsens TRADES": own_step(subject, subject.low | _TRADES),
        "a plain loop": _plain_trades(subject),
    }
    if subject.precision != "fp32":
        contenders |= {
            "distsens PGD-AT, fp32 training": own_step(subject, subject.low_attack),
            "distsens TRADES, fp32 training": own_step(subject, subject.low_attack | _TRADES),
        }
    with_art = importlib.util.find_spec(MODULES["ART"]) is not None
    if with_art:
        experiment = subject.experiment({})
        art = art_madry_step(subject, assembly.build_attack(experiment, experiment.attack))
        contenders["ART"] = lambda number: art(*subject.batch(number))
    timings = take_turns(contenders, rounds, subject.device)

    findings = []
    if with_art:
        findings += _findings(subject, timings, "pgd_at", "PGD-AT", "ART", _PGD_AT_TARGET)
    return findings + _findings(subject, timings, "trades", "TRADES", "a plain loop", _TRADES_TARGET)


def own_step(subject: Subject, changes: Mapping[str, Any], *, sns_weight: float = 0.0) -> Callable[[int], object]:
    """A step of a training as an experiment describes it, on the batch of a number."""
    experiment = subject.experiment(changes)
    network = subject.fresh().train()
    neurons = neuron_counts(network, experiment.stabilize.layers, subject.images[:1])
    layers = tuple(neurons)
    stabilizer = assembly.build_stabilizer(experiment, neurons, subject.device)
    state = TrainingState(network, assembly.build_optimizer(experiment, network), None, stabilizer)
    step = assembly.build_step(experiment, state, network, layers)

    def run(number: int) -> None:
        images, labels = subject.batch(number)
        keys = torch.arange(len(images), device=subject.device)
        batch = Batch(images, labels, keys, len(images))
        step(batch, eps_factor=1.0, sns_weight=sns_weight, awp_gamma=0.0)
        if stabilizer is not None and not stabilizer.selected:
            stabilizer.refresh()  # After the run that warms up, so that the timed ones have neurons to stabilize.

    return run


def _plain_trades(subject: Subject) -> Callable[[int], object]:
    """TRADES (Zhang et al., ICML 2019) as one writes it in PyTorch without further thought, in float32.

    The benign prediction is computed once for the attack, which makes it faster than loops that repeat it every step.
    """
    experiment = subject.experiment(_TRADES)
    attack = assembly.build_attack(experiment, experiment.attack)
    network = subject.plain()
    optimizer = assembly.build_optimizer(experiment, network)

    def divergence(adversarial: Tensor, benign_logits: Tensor) -> Tensor:
        adversarial_log_probabilities = F.log_softmax(network(adversarial), dim=1)
        return F.kl_div(adversarial_log_probabilities, F.softmax(benign_logits, dim=1), reduction="batchmean")

    def run(number: int) -> None:
        images, labels = subject.batch(number)
        network.eval()
        benign_logits = network(images).detach()
        adversarial = images + 0.001 * torch.randn_like(images)
        for _ in range(attack.steps):
            adversarial.requires_grad_()
            (gradients,) = torch.autograd.grad(divergence(adversarial, benign_logits), adversarial)
            ascended = adversarial.detach() + attack.step_size * gradients.sign()
            adversarial = torch.clamp(ascended, images - attack.threat.eps, images + attack.threat.eps).clamp(0.0, 1.0)
        network.train()
        optimizer.zero_grad()
        benign_logits = network(images)
        loss = F.cross_entropy(benign_logits, labels) + _BETA * divergence(adversarial, benign_logits)
        loss.backward()
        optimizer.step()

    return run


def _findings(subject: Subject, timings: Timings, key: str, name: str, other: str, target: float) -> list[Finding]:
    own, title = f"distsens {name}", subject.scale.title
    own_fp32 = f"{own}, fp32 training"
    seconds = median_seconds(timings)
    findings = [
        Finding(
            f"step/{subject.scale.model}/{key}",
            f"{title}: {name} step, times as fast as {other}",
            "x",
            ratios(timings, other, own),
            target=target,
            details={
                "cpu": ratios(timings, other, own, cpu=True).median,
                "seconds": {
                    contender: seconds[contender] for contender in (own, own_fp32, other) if contender in seconds
                },
            },
        )
    ]
    if own_fp32 in timings:
        findings.append(
            Finding(
                f"step/{subject.scale.model}/{key}_fp32_training",
                "  with training in float32",
                "x",
                ratios(timings, other, own_fp32),
                details={"cpu": ratios(timings, other, own_fp32, cpu=True).median},
            )
        )
    return findings
