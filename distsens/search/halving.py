"""Successive halving: who goes on to the next rung."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np


def goes_on(score: float, others: Collection[float], reduction: int) -> bool:
    """Whether a trial is among the best one in ``reduction`` at its rung, as far as that is known now.

    The rule of ASHA (Li et al., MLSys 2020) as it stops trials: nobody waits for the others of the rung.

    Parameters
    ----------
    score : of the trial; higher is better.
    others : scores of those that came to this rung before it, whether they went on or not.
    """
    return not others or score >= float(np.percentile([*others], 100 * (1 - 1 / reduction)))
