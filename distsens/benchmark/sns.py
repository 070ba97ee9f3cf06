"""What sensitivity costs: stabilizing neurons in a training step, and reading them in an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from distsens import assembly
from distsens.attacks import attack_view
from distsens.benchmark.finding import Finding, percent_more
from distsens.benchmark.rounds import median_seconds, ratios, take_turns
from distsens.benchmark.step import own_step
from distsens.benchmark.subject import Subject
from distsens.sensitivity import ActivationProbe, match_layers, pair_sums

_STEP_PERCENT, _PROBE_PERCENT = 8.0, 10.0
_SNS = {"stabilize": {"weight": 1.0}}


def measure_sns(subject: Subject, rounds: int) -> list[Finding]:
    """A step of PGD-AT with SNS at its full strength and without; a PGD evaluation with and without a probe."""
    contenders = {
        "step": own_step(subject, subject.low),
        "step with SNS": own_step(subject, subject.low | _SNS, sns_weight=1.0),
        "evaluation": _evaluation(subject, ()),
        "probed evaluation": _evaluation(subject, match_layers(subject.network, "auto", subject.images[:1])),
    }
    if subject.precision != "fp32":
        contenders |= {
            "fp32 step": own_step(subject, subject.low_attack),
            "fp32 step with SNS": own_step(subject, subject.low_attack | _SNS, sns_weight=1.0),
        }
    timings = take_turns(contenders, rounds, subject.device)
    seconds = median_seconds(timings)

    def more(name: str, title: str, slow: str, fast: str, target: float | None) -> Finding:
        cpu = percent_more(ratios(timings, slow, fast, cpu=True)).median
        return Finding(
            f"sns/{subject.scale.model}/{name}",
            title,
            "%",
            percent_more(ratios(timings, slow, fast)),
            target=target,
            at_least=False,
            details={"cpu": cpu, "seconds": {one: seconds[one] for one in (slow, fast)}},
        )

    title = subject.scale.title
    findings = [more("step", f"{title}: SNS, added to a PGD-AT step", "step with SNS", "step", _STEP_PERCENT)]
    if "fp32 step" in timings:
        findings.append(
            more("step_fp32_training", "  with training in float32", "fp32 step with SNS", "fp32 step", None)
        )
    probe = f"{title}: probe, added to a PGD evaluation"
    return [*findings, more("probe", probe, "probed evaluation", "evaluation", _PROBE_PERCENT)]


def _evaluation(subject: Subject, layers: Sequence[str]) -> Callable[[int], object]:
    """Attack a batch, then the network's logits on it and its twins, with a probe on the layers if there are any."""
    experiment = subject.experiment(subject.low_attack)
    attack = assembly.build_attack(experiment, experiment.attack)
    network = subject.network

    def run(number: int) -> None:
        images, labels = subject.batch(number)
        pairs = torch.cat([images, attack(network, images, labels)])
        probe = ActivationProbe(network, layers, read=lambda _, outputs: pair_sums(*outputs.chunk(2)))
        with probe if layers else nullcontext(), attack_view(network) as logits, torch.no_grad():
            logits(pairs)

    return run
