"""What other libraries' attacks do to the trained network, at the same settings as ours.

``python -m tests.attacks.peers`` measures it and writes it to ``peers.json``, with their versions; the quick tests
compare with what is there, and the drills with the libraries that are installed.

Same settings means: steps in pixel units (foolbox otherwise scales them by eps), the last iterate of one start (of
several starts, ART keeps one that succeeds, as ``restarts`` does), labels rather than predictions, and the example
itself, judged here by the network. In L2 and L1, foolbox clips to [0, 1] after it has projected onto the ball, which is
not the nearest point of both: there these attacks succeed a little more often. In L2, ART projects onto the ball after
[0, 1] and not before, so that its examples may leave [0, 1]: it is compared in Linf alone. Random starts come from
other generators; their success rates are means over several seeds. With AutoAttack, ours may leave a few more images
right for the same reason: of 400 images, 1.5 percentage points are 6. Square, which is nothing but random, is run from
several seeds, with the schedule of AutoAttack's standard version: our mean must lie among its numbers, give or take one
image.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from distsens.attacks import APGD, FAB, GradientAttack, JudgingAttack, Square, Threat, fgsm
from distsens.models import state_to_bytes
from distsens.randomness import sample_keys

COMMAND = "python -m tests.attacks.peers"
_FOLDER = Path(__file__).parent
FILE, WEIGHTS = _FOLDER / "peers.json", _FOLDER / "trained.safetensors"
_LIBRARIES = ("adversarial-robustness-toolbox", "foolbox", "pyautoattack")

Digits = tuple[Tensor, Tensor]


@cache
def digits() -> Digits:
    """The 1,797 digits of scikit-learn, (N, 1, 8, 8) in [0, 1], and their labels."""
    loaded = load_digits()
    return torch.tensor(loaded.images, dtype=torch.float32).unsqueeze(1) / 16.0, torch.tensor(loaded.target)


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def _train() -> nn.Module:
    images, labels = digits()
    torch.manual_seed(0)
    model = _network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(6):
        for batch in torch.randperm(len(images)).split(64):
            noisy = (images[batch] + 0.3 * torch.randn_like(images[batch])).clamp(0.0, 1.0)
            optimizer.zero_grad()
            F.cross_entropy(model(noisy), labels[batch]).backward()
            optimizer.step()
    return model


@cache
def trained() -> nn.Module:
    """A small CNN that learnt the digits under noise: half robust, because there attacks differ the most.

    It comes from a file, so that it is the same on every CPU.
    """
    model = _network()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def wrong(examples: Tensor) -> float:
    """How many of the first digits, in order, the network gets wrong, in percent."""
    with torch.no_grad():
        predicted = trained()(examples).argmax(1)
    return 100.0 * (predicted != digits()[1][: len(examples)]).double().mean().item()


@dataclass(frozen=True)
class Comparison:
    """Our number and the other's (one, or one for each of its seeds), how far ours may be below and above these, where
    they must be to say something, and whether ours is compared with them in the quick tests as well."""

    library: str
    ours: Callable[[], float]
    theirs: Callable[[], list[float]]
    below: float
    above: float
    within: tuple[float, float]
    quick: bool = True

    def check(self, theirs: list[float]) -> None:
        """Ours, against the other's numbers."""
        lowest, highest = min(theirs), max(theirs)
        assert self.within[0] < lowest <= highest < self.within[1]
        ours = self.ours()
        assert lowest - self.below <= ours <= highest + self.above, f"ours {ours}, theirs {theirs}"


# PGD and FGSM, of foolbox and ART: success rates in percent.

_POINTS = 0.5
_AHEAD = {"linf": _POINTS, "l2": 1.5, "l1": 20.0}
"""How far ahead of a peer an attack may be, in percentage points."""
_SEEDS = 5
_PGD = {
    "linf": GradientAttack(Threat("linf", 0.15), steps=10, step_size=0.04),
    "l2": GradientAttack(Threat("l2", 0.75), steps=10, step_size=0.2),
    "l1": GradientAttack(Threat("l1", 3.0), steps=10, step_size=0.3),
}
RESTARTS = replace(_PGD["linf"], restarts=3)
Run = Callable[[GradientAttack, int], Tensor]


def pgd(attack: GradientAttack, seed: int) -> Tensor:
    images, labels = digits()
    return attack(trained(), images, labels, keys=sample_keys(torch.arange(len(images)), seed))


def _foolbox_pgd(attack: GradientAttack, seed: int) -> Tensor:
    import foolbox

    kinds = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD, "l1": foolbox.attacks.SparseL1DescentAttack}
    peer = kinds[attack.threat.norm](
        abs_stepsize=attack.step_size, steps=attack.steps, random_start=attack.random_start == "uniform"
    )
    return _foolbox(peer, attack.threat.eps, seed)


def _foolbox(peer: Any, eps: float, seed: int = 0) -> Tensor:
    import foolbox

    images, labels = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = foolbox.PyTorchModel(trained(), bounds=(0, 1), device="cpu")
        examples, _, _ = peer(wrapped, images, foolbox.criteria.Misclassification(labels), epsilons=eps)
    return examples


def _art_pgd(attack: GradientAttack, seed: int) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    images, labels = digits()
    classifier = PyTorchClassifier(
        trained(),
        nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    peer = ProjectedGradientDescentPyTorch(
        classifier,
        norm=np.inf,
        eps=attack.threat.eps,
        eps_step=attack.step_size,
        max_iter=attack.steps,
        num_random_init=attack.restarts if attack.random_start == "uniform" else 0,
        batch_size=len(images),
        verbose=False,
    )
    global_state = np.random.get_state()
    np.random.seed(seed)
    examples = peer.generate(images.numpy(), labels.numpy())
    np.random.set_state(global_state)
    return torch.from_numpy(examples)


@cache
def success(run: Run, attack: GradientAttack, seeds: int) -> float:
    """Mean over the seeds."""
    return float(np.mean([wrong(run(attack, seed)) for seed in range(seeds)]))


def _of_pgd(library: str, run: Run, attack: GradientAttack, seeds: int, above: float, quick: bool) -> Comparison:
    ours = partial(success, pgd, attack, seeds)
    return Comparison(library, ours, lambda: [success(run, attack, seeds)], _POINTS, above, (10.0, 90.0), quick)


def _pgd_comparisons() -> dict[str, Comparison]:
    found = {}
    for library, run, norm in (
        ("foolbox", _foolbox_pgd, "linf"),
        ("foolbox", _foolbox_pgd, "l2"),
        ("foolbox", _foolbox_pgd, "l1"),
        ("art", _art_pgd, "linf"),
    ):
        for start, seeds in (("none", 1), ("uniform", _SEEDS)):
            attack = replace(_PGD[norm], random_start=start)
            quick = seeds == 1 or norm == "linf"
            found[f"pgd-{start}-{norm}-{library}"] = _of_pgd(library, run, attack, seeds, _AHEAD[norm], quick)
    found["pgd-restarts-linf-art"] = _of_pgd("art", _art_pgd, RESTARTS, 3, _POINTS, False)
    return found


def _of_fgsm(name: str, threat: Threat) -> Comparison:
    def theirs() -> list[float]:
        import foolbox

        peer = getattr(foolbox.attacks, name)(random_start=False)
        return [wrong(_foolbox(peer, threat.eps))]

    return Comparison(
        "foolbox", lambda: wrong(fgsm(trained(), *digits(), threat)), theirs, _POINTS, _POINTS, (0.0, 100.0)
    )


# Single attacks of AutoAttack: images that withstand them, in percent.

_STANDING = 1.5
_COUNT, _FAB_COUNT = 400, 120
_TARGETS, _TARGETED_STEPS, _FAB_TARGETS = 4, 100, 4
_SQUARE_COUNT, _SQUARE_SEEDS, _SQUARE_QUERIES = 150, 4, {"square": 150, "square-long": 600}
_THREATS = [Threat("linf", 0.13), Threat("l2", 0.6), Threat("l1", 1.8)]
_ONE_IMAGE = 100.0 / _SQUARE_COUNT
_SQUARE_THREATS = [Threat("linf", 0.15), Threat("l2", 0.8), Threat("l1", 2.4)]
_FAB_THREATS = [Threat("linf", 0.12), Threat("l2", 0.6), Threat("l1", 1.7)]


def _settings(threat: Threat, seed: int = 0) -> dict[str, Any]:
    return {"norm": threat.norm.capitalize(), "eps": threat.eps, "n_restarts": 1, "seed": seed, "device": "cpu"}


def _public_apgd(threat: Threat, loss: str) -> Any:
    from pyautoattack import autopgd_base

    settings = _settings(threat) | {"use_largereps": threat.norm == "l1"}
    if loss == "targeted":
        return autopgd_base.APGDAttack_targeted(
            trained(), n_target_classes=_TARGETS, n_iter=_TARGETED_STEPS, **settings
        ).perturb
    return autopgd_base.APGDAttack(trained(), loss=loss, n_iter=100, **settings).perturb


def _public_square(threat: Threat, queries: int, seed: int) -> Any:
    from pyautoattack import square

    return square.SquareAttack(trained(), n_queries=queries, resc_schedule=False, **_settings(threat, seed)).perturb


def _public_fab(threat: Threat) -> Any:
    import pyautoattack

    norm = threat.norm.capitalize()
    peer = pyautoattack.AutoAttack(trained(), attacks=["fab-t"], norm=norm, eps=threat.eps, version="custom", seed=0)
    peer.fab.n_target_classes = _FAB_TARGETS
    return lambda images, labels: peer.run_standard_evaluation(images, labels)[0]


def _public(attack: Callable[[Tensor, Tensor], Tensor], count: int) -> float:
    images, labels = digits()[0][:count], digits()[1][:count]
    with torch.random.fork_rng(devices=[]):
        return 100.0 - wrong(attack(images, labels))


def _own(attack: JudgingAttack, count: int, keys: Tensor | None = None) -> float:
    images, labels = digits()[0][:count], digits()[1][:count]
    return 100.0 - wrong(attack(trained(), images, labels, keys=keys).adversarial)


def _of_autoattack(
    ours: JudgingAttack, theirs: Callable[[], Any], count: int, below: float, above: float, quick: bool
) -> Comparison:
    return Comparison(
        "pyautoattack",
        partial(_own, ours, count),
        lambda: [_public(theirs(), count)],
        below,
        above,
        (20.0, 80.0),
        quick,
    )


def _of_square(threat: Threat, queries: int, quick: bool) -> Comparison:
    seeds, count = range(_SQUARE_SEEDS), _SQUARE_COUNT

    def ours() -> float:
        attack, samples = Square(threat, queries=queries), torch.arange(count)
        return float(np.mean([_own(attack, count, sample_keys(samples, seed)) for seed in seeds]))

    def theirs() -> list[float]:
        return [_public(_public_square(threat, queries, seed), count) for seed in seeds]

    return Comparison("pyautoattack", ours, theirs, _ONE_IMAGE, _ONE_IMAGE, (20.0, 80.0), quick)


def _autoattack_comparisons() -> dict[str, Comparison]:
    found = {}
    for threat in _THREATS:
        below = 4.0 if threat.norm == "l1" else _STANDING
        for name, ours, theirs, less, quick in (
            ("apgd-ce", APGD(threat), partial(_public_apgd, threat, "ce"), below, True),
            ("apgd-dlr", APGD(threat, "dlr"), partial(_public_apgd, threat, "dlr"), below, threat.norm == "linf"),
            (
                "apgd-t",
                APGD(threat, "dlr", steps=_TARGETED_STEPS, targets=_TARGETS),
                partial(_public_apgd, threat, "targeted"),
                below,
                threat.norm == "linf",
            ),
        ):
            found[f"{name}-{threat.norm}"] = _of_autoattack(ours, theirs, _COUNT, less, _STANDING, quick)
    for name, queries in _SQUARE_QUERIES.items():
        for threat in _SQUARE_THREATS:
            found[f"{name}-{threat.norm}"] = _of_square(threat, queries, name == "square")
    for threat in _FAB_THREATS:
        ours = FAB(threat, targets=_FAB_TARGETS)
        found[f"fab-t-{threat.norm}"] = _of_autoattack(
            ours, partial(_public_fab, threat), _FAB_COUNT, 3.0, 1.0, threat.norm == "l2"
        )
    return found


COMPARISONS = {
    **_pgd_comparisons(),
    "fgsm-linf": _of_fgsm("LinfFastGradientAttack", _PGD["linf"].threat),
    "fgsm-l2": _of_fgsm("L2FastGradientAttack", _PGD["l2"].threat),
    **_autoattack_comparisons(),
}


def stored() -> dict[str, list[float]]:
    """The others' numbers, as they were measured."""
    numbers: dict[str, list[float]] = json.loads(FILE.read_text(encoding="utf-8"))["numbers"]
    return numbers


def main() -> None:
    torch.set_num_threads(1)
    if not WEIGHTS.exists():
        WEIGHTS.write_bytes(state_to_bytes(_train().state_dict()))
    found = {
        "command": COMMAND,
        "versions": {name: version(name) for name in _LIBRARIES},
        "numbers": {
            name: [round(value, 4) for value in comparison.theirs()] for name, comparison in COMPARISONS.items()
        },
    }
    FILE.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
