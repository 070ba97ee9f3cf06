"""Example generation: gradient evaluations a second against the peers' PGD, with equal success."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distsens.assembly import build_attack
from distsens.attacks import GradientAttack
from distsens.benchmark.finding import Finding
from distsens.benchmark.peers import Attack, peer_attacks
from distsens.benchmark.rounds import Spread, median_seconds, ratios, take_turns
from distsens.benchmark.subject import Subject
from distsens.experiment import Precision
from distsens.logits import predictions
from distsens.randomness import sample_keys

_TARGETS = {"small_cnn": 3.0, "resnet18": 5.0}
_POINTS = 0.5
_OURS, _OURS_FP32 = "distsens", "distsens fp32"


def measure_attack(subject: Subject, rounds: int) -> list[Finding]:
    """PGD in Linf from a random start: ours in the subject's precision and in float32, and the peers' as they are.

    Every round attacks another batch, the same one for all. A gradient evaluation is one image's gradient.
    """
    peers = peer_attacks(subject, _our_pgd(subject, "fp32"))
    attacks = {_OURS: _our_attack(subject, subject.precision), **peers}
    if subject.precision != "fp32":
        attacks[_OURS_FP32] = _our_attack(subject, "fp32")
    examples: dict[str, dict[int, Tensor]] = {name: {} for name in attacks}

    def contender(name: str) -> Callable[[int], None]:
        def run(number: int) -> None:
            torch.manual_seed(number)
            examples[name][number] = attacks[name](*subject.batch(number))

        return run

    timings = take_turns({name: contender(name) for name in attacks}, rounds, subject.device)
    evaluations = subject.scale.batch * subject.scale.steps
    rates = {name: evaluations / seconds for name, seconds in median_seconds(timings).items()}
    success = {name: _success(subject, of) for name, of in examples.items()}

    model, title = subject.scale.model, subject.scale.title
    own_rates = Spread.of([evaluations / one.seconds for one in timings[_OURS]])
    findings = [
        Finding(f"attack/{model}/rate", f"{title}: PGD gradients a second", "1/s", own_rates, details={"rate": rates})
    ]
    if peers:
        fastest = max(peers, key=lambda name: rates[name])
        details = {"fastest_peer": fastest, "cpu": ratios(timings, fastest, _OURS, cpu=True).median}
        details |= {"by_peer": {name: ratios(timings, name, _OURS).median for name in peers}}
        furthest = max(peers, key=lambda name: abs(success[name] - success[_OURS]))
        findings += [
            Finding(
                f"attack/{model}/speedup",
                f"{title}: PGD, times as fast as {fastest}",
                "x",
                ratios(timings, fastest, _OURS),
                target=_TARGETS[model],
                details=details,
            ),
            Finding(
                f"attack/{model}/success_difference",
                f"  success rate beside {furthest}",
                "points",
                Spread.of([abs(success[furthest] - success[_OURS])]),
                target=_POINTS,
                at_least=False,
                details={"success": success, "images": rounds * subject.scale.batch},
            ),
        ]
    if peers and _OURS_FP32 in attacks:
        findings.append(
            Finding(
                f"attack/{model}/speedup_fp32",
                "  in float32",
                "x",
                ratios(timings, fastest, _OURS_FP32),
                details={"cpu": ratios(timings, fastest, _OURS_FP32, cpu=True).median},
            )
        )
    return findings


def _our_pgd(subject: Subject, precision: Precision) -> GradientAttack:
    experiment = subject.experiment({"attack": {"precision": precision}})
    return build_attack(experiment, experiment.attack)


def _our_attack(subject: Subject, precision: Precision) -> Attack:
    attack, network = _our_pgd(subject, precision), subject.network

    def run(images: Tensor, labels: Tensor) -> Tensor:
        start = torch.randint(2**62, (1,)).item()
        keys = sample_keys(torch.arange(len(images), device=images.device), int(start))
        return attack(network, images, labels, keys=keys)

    return run


@torch.no_grad()
def _success(subject: Subject, examples: dict[int, Tensor]) -> float:
    """Percent of the examples, over all rounds, that the network gets wrong in float32."""
    wrong = [
        predictions(subject.network(adversarial)) != subject.batch(number)[1]
        for number, adversarial in examples.items()
    ]
    return 100.0 * float(torch.cat(wrong).double().mean())
