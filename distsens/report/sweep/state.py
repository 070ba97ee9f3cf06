"""What is known of a sweep's trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import Field

from distsens.search import Point
from distsens.strict_json import Document, load_as

Status = Literal["running", "stopped", "finished", "failed", "interrupted"]


@dataclass
class RungState:
    """A trial's training at a rung, so far or to its end.

    clean, robust : accuracies on validation in its best epoch, None before it ended. score : by the sweep's goal.
    seconds : of training. evaluations : gradient evaluations of the training attack.
    """

    epochs: int = 0
    clean: float | None = None
    robust: float | None = None
    score: float | None = None
    seconds: float = 0.0
    evaluations: float = 0.0


@dataclass
class TrialState:
    """A trial.

    trial : its name. number : from 0 on, in the order in which they were drawn. values : by searched field.
    status : ``stopped`` is ended by the scheduler, ``finished`` at the last rung.
    passing : that it failed may be of a place or a moment, so that a resumed sweep tries it again.
    rungs : by number from 1 on.
    """

    trial: str
    number: int
    values: dict[str, Any]
    status: Status = "running"
    failure: str | None = None
    mlflow_run_id: str | None = None
    rungs: dict[int, RungState] = field(default_factory=dict)
    autoattack: float | None = None
    passing: bool = False

    @property
    def unfinished(self) -> bool:
        """Whether it is to be run, or to go on."""
        return self.status in ("running", "interrupted")

    @property
    def rung(self) -> int:
        """The highest that it has come to; 0 before the first."""
        return max(self.rungs, default=0)

    @property
    def rungs_done(self) -> int:
        """The highest that it has done; 0 before the first."""
        return max((number for number, one in self.rungs.items() if one.score is not None), default=0)

    @property
    def judged(self) -> RungState | None:
        """Its training at the highest rung that it has done."""
        return self.rungs.get(self.rungs_done)

    @property
    def point(self) -> Point | None:
        """Accuracies at the highest rung that it has done."""
        one = self.judged
        return None if one is None or one.clean is None or one.robust is None else Point(one.clean, one.robust)

    @property
    def seconds(self) -> float:
        """Of training, over all rungs."""
        return sum(one.seconds for one in self.rungs.values())

    @property
    def evaluations(self) -> float:
        """Gradient evaluations of the training attack, over all rungs."""
        return sum(one.evaluations for one in self.rungs.values())

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> TrialState:
        """The inverse of :meth:`to_dict`; `ValueError` where it is not of one."""
        known = load_as(_Trial, document)
        rungs = {int(number): RungState(**one.model_dump()) for number, one in known.rungs.items()}
        return TrialState(**{**known.model_dump(), "rungs": rungs})


class _Rung(Document):
    epochs: int = Field(ge=0)
    clean: float | None
    robust: float | None
    score: float | None
    seconds: float
    evaluations: float


class _Trial(Document):
    """What a trial's file holds."""

    trial: str
    number: int = Field(ge=0)
    values: dict[str, Any]
    status: Status
    failure: str | None
    mlflow_run_id: str | None
    rungs: dict[int | str, _Rung]
    autoattack: float | None
    passing: bool = False


def ranked(trials: Iterable[TrialState]) -> list[TrialState]:
    """Best first: by the rung that was done, then by score there, then the earlier; those that failed are left out."""
    done = [one for one in trials if one.judged is not None and one.status != "failed"]
    return sorted(done, key=lambda one: (-one.rungs_done, -_score(one), one.number))


def at_the_end(trials: Iterable[TrialState]) -> list[TrialState]:
    """Those that finished, best first: the ones that can win, and that can be compared."""
    return [one for one in ranked(trials) if one.status == "finished"]


def short_names(fields: Iterable[str]) -> dict[str, str]:
    """``weight`` for ``stabilize.weight``, where no other field ends so."""
    names = list(fields)
    ends = [name.rpartition(".")[2] for name in names]
    return {name: end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)}


def shown(value: Any) -> str:
    """A searched value, short."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _score(one: TrialState) -> float:
    judged = one.judged
    return 0.0 if judged is None or judged.score is None else judged.score
