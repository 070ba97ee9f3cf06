"""Other libraries' attacks and training at the same settings, where these libraries are installed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor, nn

from distsens.attacks import GradientAttack
from distsens.benchmark.subject import Subject

MODULES = {"torchattacks": "torchattacks", "foolbox": "foolbox", "ART": "art", "pyautoattack": "pyautoattack"}
PEERS_OF = {
    "attack": ("torchattacks", "foolbox", "ART"),
    "step": ("ART",),
    "autoattack": ("pyautoattack",),
}
"""Peers that a part compares with."""

Attack = Callable[[Tensor, Tensor], Tensor]
Train = Callable[[Tensor, Tensor], object]


def missing_peers(peers: Collection[str]) -> list[str]:
    """Those of the peers that are not installed."""
    return [name for name, module in MODULES.items() if name in peers and importlib.util.find_spec(module) is None]


def peer_attacks(subject: Subject, attack: GradientAttack) -> dict[str, Attack]:
    """The installed peers' PGD from images and labels to adversarial images, in float32, as their users run it."""
    builders = {"torchattacks": _torchattacks, "foolbox": _foolbox, "ART": _art}
    missing = missing_peers(builders)
    return {name: build(subject, attack) for name, build in builders.items() if name not in missing}


def art_madry_step(subject: Subject, attack: GradientAttack) -> Train:
    """A step on one batch of ART's AdversarialTrainerMadryPGD, with SGD as ours."""
    from art.defences.trainer import AdversarialTrainerMadryPGD

    network = subject.plain()
    classifier = _art_classifier(subject, network, torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9))
    trainer = AdversarialTrainerMadryPGD(
        classifier,
        nb_epochs=1,
        batch_size=subject.scale.batch,
        eps=attack.threat.eps,
        eps_step=attack.step_size,
        max_iter=attack.steps,
    )
    trainer.attack.set_params(batch_size=subject.scale.batch)

    def step(images: Tensor, labels: Tensor) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # It shows a progress bar for every batch.
            trainer.fit(images.cpu().numpy(), labels.cpu().numpy())

    return step


def _torchattacks(subject: Subject, attack: GradientAttack) -> Attack:
    import torchattacks

    peer: Attack = torchattacks.PGD(
        subject.plain(), eps=attack.threat.eps, alpha=attack.step_size, steps=attack.steps, random_start=True
    )
    return peer


def _foolbox(subject: Subject, attack: GradientAttack) -> Attack:
    import foolbox

    network = foolbox.PyTorchModel(subject.plain(), bounds=(0, 1), device=subject.device)
    peer = foolbox.attacks.LinfPGD(abs_stepsize=attack.step_size, steps=attack.steps, random_start=True)

    def run(images: Tensor, labels: Tensor) -> Tensor:
        # Without the verdict on the examples that a call would add, as the others give none.
        examples: Tensor = peer.run(
            network, images, foolbox.criteria.Misclassification(labels), epsilon=attack.threat.eps
        )
        return examples

    return run


def _art(subject: Subject, attack: GradientAttack) -> Attack:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    peer = ProjectedGradientDescentPyTorch(
        _art_classifier(subject, subject.plain()),
        norm=np.inf,
        eps=attack.threat.eps,
        eps_step=attack.step_size,
        max_iter=attack.steps,
        num_random_init=1,
        batch_size=subject.scale.batch,
        verbose=False,
    )

    def run(images: Tensor, labels: Tensor) -> Tensor:
        examples = peer.generate(images.cpu().numpy(), labels.cpu().numpy())
        return torch.from_numpy(examples).to(images.device)

    return run


def _art_classifier(subject: Subject, network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> object:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        input_shape=subject.scale.shape,
        nb_classes=int(subject.labels.max()) + 1,
        optimizer=optimizer,
        clip_values=(0.0, 1.0),
        device_type="gpu" if subject.device.type == "cuda" else "cpu",
    )
