"""Training losses over benign images x and their adversarial twins x', with labels y and logits f.

========  ===================================================  =========================  =====================
name      loss                                                 x' is made by              source
========  ===================================================  =========================  =====================
standard  CE(f(x), y)                                          (there is none)
nat       alpha CE(f(x), y) + (1 - alpha) CE(f(x'), y)         FGSM                       Goodfellow, ICLR 2015
pgd_at    CE(f(x'), y)                                         PGD on the CE              Madry, ICLR 2018
fast_at   CE(f(x'), y)                                         FGSM from a uniform start  Wong, ICLR 2020
free_at   CE(f(x'), y)                                         replays of the batch       Shafahi, NeurIPS 2019
alp       mean of both CE + beta mean (f(x) - f(x'))^2         PGD on the CE              Kannan, 2018
trades    CE(f(x), y) + beta KL(f(x) || f(x'))                 PGD on the KL              Zhang, ICML 2019
mart      BCE(f(x'), y) + beta KL(f(x) || f(x')) (1 - p_y(x))  PGD on the CE              Wang, ICLR 2020
========  ===================================================  =========================  =====================

Any attack can be handed to :meth:`Objective.generate`; the third column is the published choice. The objective itself
decides what the attack raises: the CE, or the KL.
"""

from distsens.objectives.alp import alp
from distsens.objectives.fast_at import fast_at
from distsens.objectives.free_at import free_at
from distsens.objectives.mart import mart
from distsens.objectives.nat import nat
from distsens.objectives.objective import LossParts, Objective
from distsens.objectives.pgd_at import pgd_at
from distsens.objectives.standard import standard
from distsens.objectives.trades import trades

__all__ = [
    "LossParts",
    "Objective",
    "alp",
    "fast_at",
    "free_at",
    "mart",
    "nat",
    "pgd_at",
    "standard",
    "trades",
]
