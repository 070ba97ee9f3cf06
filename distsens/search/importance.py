"""Which searched field made the difference."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from distsens.search.space import Choice, Grid, Integers, LogUniform, Space

_FEWEST_TRIALS = 4


def importance(space: Space, trials: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, float]:
    """Share, in [0, 1], of the scores' variance that each field explains, largest first (fANOVA, by Optuna).

    Hutter, Hoos and Leyton-Brown, ICML 2014. It says nothing (empty) of fewer than four trials, of equal scores, or
    of equal values.

    Parameters
    ----------
    space : the distributions that were searched.
    trials : values by field, and score, of trials judged alike.
    """
    if len(trials) < _FEWEST_TRIALS or len({score for _, score in trials}) < 2:
        return {}
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {field: _distribution(one) for field, one in space.items()}
    study = optuna.create_study(direction="maximize")
    for values, score in trials:
        params = {field: _plain(values[field]) for field in space}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
        except RuntimeError:  # the fields do not differ where the scores do
            return {}
    return {field: float(share) for field, share in found.items()}


def _plain(value: Any) -> Any:
    """Optuna knows no lists: a choice among them is one among their texts, the same for what was read from JSON."""
    return repr(tuple(value)) if isinstance(value, tuple | list) else value


def _distribution(one: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match one:
        case Choice(values) | Grid(values):
            return CategoricalDistribution([_plain(value) for value in values])
        case Integers(low, high):
            return IntDistribution(low, high)
        case LogUniform(low, high):
            return FloatDistribution(low, high, log=True)
        case _:
            return FloatDistribution(one.low, one.high)
