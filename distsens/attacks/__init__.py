"""Adversarial examples: the threat model, the attack view of a model, and the attacks that train and judge."""

from distsens.attacks.apgd import APGD, APGDLoss
from distsens.attacks.attack import GradientAttack
from distsens.attacks.carlini_wagner import CarliniWagner
from distsens.attacks.closest import Closest
from distsens.attacks.deepfool import DeepFool
from distsens.attacks.fab import FAB
from distsens.attacks.found import Found, JudgingAttack
from distsens.attacks.gradient import AttackName, attack_named, bim, cw_pgd, fast_fgsm, fgsm, mim, pgd, step_ll
from distsens.attacks.losses import AttackLoss, cross_entropy, dlr, kl_divergence, least_likely, margin, targeted_dlr
from distsens.attacks.projections import project_l1, project_l2
from distsens.attacks.square import Square
from distsens.attacks.tally import Tally
from distsens.attacks.threat import L1_FRACTION, Norm, RandomStart, Threat
from distsens.attacks.view import attack_view, logits_of

__all__ = [
    "APGD",
    "FAB",
    "L1_FRACTION",
    "APGDLoss",
    "AttackLoss",
    "AttackName",
    "CarliniWagner",
    "Closest",
    "DeepFool",
    "Found",
    "GradientAttack",
    "JudgingAttack",
    "Norm",
    "RandomStart",
    "Square",
    "Tally",
    "Threat",
    "attack_named",
    "attack_view",
    "bim",
    "cross_entropy",
    "cw_pgd",
    "dlr",
    "fast_fgsm",
    "fgsm",
    "kl_divergence",
    "least_likely",
    "logits_of",
    "margin",
    "mim",
    "pgd",
    "project_l1",
    "project_l2",
    "step_ll",
    "targeted_dlr",
]
