"""The attacks by name: what each paper settles of the steps, the start and the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distsens.attacks.attack import GradientAttack
from distsens.attacks.losses import AttackLoss, cross_entropy, least_likely, margin
from distsens.attacks.threat import L1_FRACTION, RandomStart, Threat
from distsens.errors import InputError

AttackName = Literal["fgsm", "fast_fgsm", "bim", "mim", "step_ll", "pgd", "cw_pgd"]


@dataclass(frozen=True)
class _Method:
    """What a paper settles about its attack.

    reach : length of all steps together, in eps, where no step size is given.
    """

    reach: float
    one_step: bool = False
    random_start: RandomStart | None = None
    loss: AttackLoss | None = None


_METHODS: dict[AttackName, _Method] = {
    "fgsm": _Method(1.0, one_step=True, random_start="none"),
    "fast_fgsm": _Method(1.25, one_step=True, random_start="uniform"),
    "bim": _Method(1.0, random_start="none"),
    "mim": _Method(1.0, random_start="none"),
    "step_ll": _Method(1.0, one_step=True, random_start="none", loss=least_likely),
    "pgd": _Method(2.5),
    "cw_pgd": _Method(2.5, loss=margin),
}


def attack_named(
    name: AttackName,
    threat: Threat,
    *,
    steps: int = 1,
    step_size: float | None = None,
    random_start: RandomStart = "uniform",
    restarts: int = 1,
    momentum: float = 1.0,
    l1_fraction: float = L1_FRACTION,
    precision: torch.dtype | None = None,
) -> GradientAttack:
    """The attack of that name, whose own settings go before the given ones.

    Parameters
    ----------
    steps : fgsm, fast_fgsm and step_ll take one, whatever is given.
    step_size : default 2.5 * eps / steps for pgd and cw_pgd, eps / steps for bim and mim, 1.25 * eps for fast_fgsm.
        fgsm and step_ll take one step of eps.
    random_start : only pgd and cw_pgd leave it open; fast_fgsm starts uniformly in the ball, the others at the image.
    momentum : only mim has one.

    Raises
    ------
    InputError : a setting is out of range, or a step size is given to an attack that has its own.
    """
    method = _METHODS[name]
    if step_size is not None and name in ("fgsm", "step_ll"):
        raise InputError("attack.step_size", step_size, f"{name} takes one step of length eps: leave it out")
    steps = 1 if method.one_step else steps
    return GradientAttack(
        threat,
        steps,
        method.reach * threat.eps / max(steps, 1) if step_size is None else step_size,
        method.random_start or random_start,
        restarts,
        precision,
        momentum if name == "mim" else 0.0,
        l1_fraction,
        method.loss,
    )


def fgsm(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    loss: AttackLoss = cross_entropy,
    targeted: bool = False,
    precision: torch.dtype | None = None,
) -> Tensor:
    """Fast gradient sign method: one step of length eps from the image itself.

    Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015. Arguments as in :func:`pgd`.
    """
    attack = attack_named("fgsm", threat, precision=precision)
    return attack(model, images, targets, loss=loss, targeted=targeted)


def fast_fgsm(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    step_size: float | None = None,
    loss: AttackLoss = cross_entropy,
    targeted: bool = False,
    keys: Tensor | None = None,
    precision: torch.dtype | None = None,
) -> Tensor:
    """FGSM from a start drawn uniformly from the ball: one step of 1.25 * eps, projected.

    Wong et al., "Fast is better than free: Revisiting adversarial training", ICLR 2020, algorithm 3. Longer steps let
    training collapse (catastrophic overfitting). Arguments as in :func:`pgd`.
    """
    attack = attack_named("fast_fgsm", threat, step_size=step_size, precision=precision)
    return attack(model, images, targets, loss=loss, targeted=targeted, keys=keys)


def bim(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    steps: int,
    step_size: float | None = None,
    loss: AttackLoss = cross_entropy,
    targeted: bool = False,
    precision: torch.dtype | None = None,
) -> Tensor:
    """Basic iterative method: FGSM in small steps from the image itself, by default of eps / steps.

    Kurakin et al., "Adversarial Examples in the Physical World", ICLR 2017 workshop, section 2.2. Arguments as in
    :func:`pgd`.
    """
    attack = attack_named("bim", threat, steps=steps, step_size=step_size, precision=precision)
    return attack(model, images, targets, loss=loss, targeted=targeted)


def mim(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    steps: int,
    step_size: float | None = None,
    momentum: float = 1.0,
    loss: AttackLoss = cross_entropy,
    targeted: bool = False,
    precision: torch.dtype | None = None,
) -> Tensor:
    """Momentum iterative method: steps along ``g <- momentum * g + gradient / ||gradient||_1`` from the image itself.

    Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018, algorithm 1; steps of eps / steps by default.
    Without momentum it is :func:`bim`. Arguments as in :func:`pgd`.
    """
    attack = attack_named("mim", threat, steps=steps, step_size=step_size, momentum=momentum, precision=precision)
    return attack(model, images, targets, loss=loss, targeted=targeted)


def step_ll(
    model: nn.Module, images: Tensor, targets: Tensor, threat: Threat, *, precision: torch.dtype | None = None
) -> Tensor:
    """Single step of length eps towards the class that the model finds least likely for the image.

    Kurakin et al., "Adversarial Machine Learning at Scale", ICLR 2017, section 2. ``targets`` are not used: the attack
    finds its own, which keeps training on it from leaking labels. Other arguments as in :func:`pgd`.
    """
    return attack_named("step_ll", threat, precision=precision)(model, images, targets)


def pgd(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    random_start: RandomStart = "uniform",
    restarts: int = 1,
    loss: AttackLoss = cross_entropy,
    targeted: bool = False,
    keys: Tensor | None = None,
    precision: torch.dtype | None = None,
) -> Tensor:
    """Projected gradient descent: ``x' <- project(x' + step_size * steepest ascent of loss)``, ``steps`` times.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018; in L1 it is SLIDE (see
    :meth:`Threat.ascend`). The last iterate counts. With restarts the attempt that succeeds wins, and among equals the
    one with the better loss.

    Parameters
    ----------
    model : any classifier of [0, 1] images; left exactly as it was (see :func:`attack_view`).
    images : (N, C, H, W) in [0, 1].
    targets : what ``loss`` compares logits with: labels (N,), or benign logits (N, K) for a KL divergence.
    threat : the ball.
    steps, step_size : number and length (in the norm, pixel space) of the steps.
    random_start : see :meth:`Threat.start`.
    restarts : independent attempts per image; only useful with a random start.
    loss : per-image loss to make large.
    targeted : make it small instead: the targets are what the images are to be taken for.
    keys : (N,) integers; the random start of image i depends on ``keys[i]`` alone. Default: 0 to N-1.
    precision : type of the forward and backward passes, e.g. ``torch.bfloat16``; default float32.

    Returns
    -------
    (N, C, H, W) adversarial images, detached, inside the ball and [0, 1].

    Raises
    ------
    InputError : a setting or a key is missing or out of range, or the images are not in [0, 1].
    """
    attack = attack_named(
        "pgd",
        threat,
        steps=steps,
        step_size=step_size,
        random_start=random_start,
        restarts=restarts,
        precision=precision,
    )
    return attack(model, images, targets, loss=loss, targeted=targeted, keys=keys)


def cw_pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    random_start: RandomStart = "uniform",
    restarts: int = 1,
    targeted: bool = False,
    keys: Tensor | None = None,
    precision: torch.dtype | None = None,
) -> Tensor:
    """PGD on the margin ``max over k != label of logits_k - logits_label`` of Carlini and Wagner.

    As in the experiments of Madry et al., ICLR 2018, section 5; see :func:`margin`. Arguments as in :func:`pgd`.
    """
    attack = attack_named(
        "cw_pgd",
        threat,
        steps=steps,
        step_size=step_size,
        random_start=random_start,
        restarts=restarts,
        precision=precision,
    )
    return attack(model, images, labels, targeted=targeted, keys=keys)
