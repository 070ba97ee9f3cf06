"""The result of a sweep, for scripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class SweepSummary:
    """What ``--summary`` writes, with these keys.

    status : ``"finished"``, ``"failed"`` or ``"interrupted"``.
    message : why it failed or was interrupted; null when finished.
    sweep : its name, as ``--resume`` takes it.
    storage : where its trials are.
    mlflow_uri, mlflow_run_id : where it is tracked; its trials are the children of this run.
    search : distribution of each searched field, as text. settings : the recipe's ``sweep``.
    trials : for each ``trial``, ``number``, ``values``, ``status`` (``finished`` at the last rung, ``stopped`` by the
        scheduler, ``failed``, ``interrupted``), ``failure``, ``passing`` (whether a resumed sweep tries it again),
        ``mlflow_run_id``, ``autoattack`` (robust accuracy of a
        finalist on validation, else null) and ``rungs``: by number, ``epochs``, ``clean`` and ``robust`` accuracy on
        validation in the best epoch, ``score`` by the goal, ``seconds`` and ``evaluations`` (gradient evaluations of
        the training attack).
    best : the leading trial's id; null if none has finished a training.
    front : ids of the trials on the Pareto front of clean and robust accuracy, by rising clean accuracy.
    hypervolume : area that the front dominates above no accuracy at all, in [0, 1].
    importance : share of the scores' variance that each field explains, at the rung that most trials did; empty for
        fewer than four trials.
    cost : ``evaluations`` and ``seconds`` of training over all trials, ``to_the_end`` what the evaluations would be
        had no trial been stopped early and each run the last rung alone (null before one did), ``saved`` the part
        saved, negative where the rungs took more.
    champion : null until it is trained: ``trial``, ``values``, ``run``, ``published``, ``mlflow_run_id``,
        ``mlflow_model``, ``registered`` (``models:/name@champion``), ``version``, and ``test`` as in a
        training's summary.
    at_a_time : trials that the cluster holds.
    seconds : wall-clock time of this call.
    """

    status: str
    message: str | None
    sweep: str
    storage: str
    mlflow_uri: str
    mlflow_run_id: str
    search: dict[str, str]
    settings: dict[str, Any]
    trials: list[dict[str, Any]]
    best: str | None
    front: list[str]
    hypervolume: float
    importance: dict[str, float]
    cost: dict[str, float | None]
    champion: dict[str, Any] | None
    at_a_time: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)
