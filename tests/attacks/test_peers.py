"""Equal in success rate to foolbox's and ART's attacks at the same settings.

Same settings means: steps in pixel units (foolbox otherwise scales them by eps), the last iterate of one start (of
several starts, ART keeps one that succeeds, as ``restarts`` does), labels rather than predictions, and the example
itself, judged here by the network. In L2 and L1, foolbox clips to [0, 1] after it has projected onto the ball, which is
not the nearest point of both: there these attacks succeed a little more often. In L2, ART projects onto the ball after
[0, 1] and not before, so that its examples may leave [0, 1]: it is compared in Linf alone. Random starts come from
other generators; their success rates are means over several seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import GradientAttack, Threat, fgsm
from distsens.randomness import sample_keys

pytestmark = pytest.mark.peers

_POINTS = 0.5  # Percentage points.
_AHEAD = {"linf": _POINTS, "l2": 1.5, "l1": 20.0}
"""How far ahead of a peer an attack may be, in percentage points."""
_SEEDS = range(5)
_LINF = GradientAttack(Threat("linf", 0.15), steps=10, step_size=0.04)
_L2 = GradientAttack(Threat("l2", 0.75), steps=10, step_size=0.2)
_L1 = GradientAttack(Threat("l1", 3.0), steps=10, step_size=0.3)

Success = Callable[[Tensor], float]
Digits = tuple[Tensor, Tensor]


def _ours(attack: GradientAttack, trained: nn.Module, digits: Digits, seed: int) -> Tensor:
    images, labels = digits
    return attack(trained, images, labels, keys=sample_keys(torch.arange(len(images)), seed))


def _foolbox(attack: GradientAttack, trained: nn.Module, digits: Digits, seed: int) -> Tensor:
    foolbox = pytest.importorskip("foolbox")
    kinds = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD, "l1": foolbox.attacks.SparseL1DescentAttack}
    kind = kinds[attack.threat.norm]
    peer = kind(abs_stepsize=attack.step_size, steps=attack.steps, random_start=attack.random_start == "uniform")
    return _run_foolbox(peer, attack.threat, trained, digits, seed)


def _run_foolbox(peer: object, threat: Threat, trained: nn.Module, digits: Digits, seed: int) -> Tensor:
    foolbox = pytest.importorskip("foolbox")
    images, labels = digits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = foolbox.PyTorchModel(trained, bounds=(0, 1), device="cpu")
        examples, _, _ = peer(wrapped, images, foolbox.criteria.Misclassification(labels), epsilons=threat.eps)
    return examples


def _art(attack: GradientAttack, trained: nn.Module, digits: Digits, seed: int) -> Tensor:
    pytest.importorskip("art")
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    images, labels = digits
    classifier = PyTorchClassifier(
        trained, nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0.0, 1.0), device_type="cpu"
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


_PEERS = [
    pytest.param(_foolbox, _LINF, id="foolbox-linf"),
    pytest.param(_foolbox, _L2, id="foolbox-l2"),
    pytest.param(_foolbox, _L1, id="foolbox-l1"),
    pytest.param(_art, _LINF, id="art-linf"),
]
Peer = Callable[[GradientAttack, nn.Module, Digits, int], Tensor]


def _settled(attack: GradientAttack, **changes: object) -> GradientAttack:
    return GradientAttack(attack.threat, attack.steps, attack.step_size, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("peer", "attack"), _PEERS)
def test_pgd_from_the_image_succeeds_as_often_as_a_peer(
    peer: Peer, attack: GradientAttack, trained: nn.Module, digits: Digits, success: Success
) -> None:
    attack = _settled(attack, random_start="none")
    ours, theirs = (success(run(attack, trained, digits, 0)) for run in (_ours, peer))
    assert 10.0 < theirs < 90.0
    assert theirs - _POINTS <= ours <= theirs + _AHEAD[attack.threat.norm]


@pytest.mark.parametrize(("peer", "attack"), _PEERS)
def test_pgd_from_a_random_start_succeeds_as_often_as_a_peer(
    peer: Peer, attack: GradientAttack, trained: nn.Module, digits: Digits, success: Success
) -> None:
    ours, theirs = (np.mean([success(run(attack, trained, digits, seed)) for seed in _SEEDS]) for run in (_ours, peer))
    assert 10.0 < theirs < 90.0
    assert theirs - _POINTS <= ours <= theirs + _AHEAD[attack.threat.norm]


def test_restarts_succeed_as_often_as_those_of_art(trained: nn.Module, digits: Digits, success: Success) -> None:
    attack = _settled(_LINF, restarts=3)
    ours, theirs = (
        np.mean([success(run(attack, trained, digits, seed)) for seed in range(3)]) for run in (_ours, _art)
    )
    assert ours == pytest.approx(theirs, abs=_POINTS)
    assert ours > success(_ours(_LINF, trained, digits, 0))


@pytest.mark.parametrize(
    ("name", "threat"), [("LinfFastGradientAttack", _LINF.threat), ("L2FastGradientAttack", _L2.threat)]
)
def test_fgsm_succeeds_as_often_as_that_of_foolbox(
    name: str, threat: Threat, trained: nn.Module, digits: Digits, success: Success
) -> None:
    foolbox = pytest.importorskip("foolbox")
    peer = getattr(foolbox.attacks, name)(random_start=False)
    theirs = success(_run_foolbox(peer, threat, trained, digits, seed=0))
    assert success(fgsm(trained, *digits, threat)) == pytest.approx(theirs, abs=_POINTS)
