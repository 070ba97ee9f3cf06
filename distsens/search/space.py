"""What a sweep searches: fields of an experiment, each with a distribution."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distsens.errors import InputError
from distsens.experiment import Experiment, branch, merge, parse_number

# Where and by how many a trial is run is the sweep's business, and its name is the trial's.
_NOT_SEARCHED = ("name", "workers", "checkpoint", "storage", "tracking")
_MOST = 1e300  # that a searched number may be: what is larger would be none in a field
# What an experiment judges together: a value that is allowed beside the recipe's need not be beside one that is drawn.
_JUDGED_TOGETHER = (
    ("threat.norm", "threat.eps"),
    ("threat.eps", "objective.name", "stabilize.weight"),
    ("threat.eps", "attack.step_size", "validation.step_size", "test.step_size"),
    ("objective.name", "objective.label_smoothing"),
    ("stabilize.warmup_start", "stabilize.warmup_end"),
)


@dataclass(frozen=True)
class Uniform:
    """Any number in [low, high], all equally likely."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"uniform [{self.low:g}, {self.high:g}]"

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that are allowed if all are."""
        return self.low, self.high


@dataclass(frozen=True)
class LogUniform:
    """Any number in [low, high], equally likely on a logarithmic scale; low is above 0."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"loguniform [{self.low:g}, {self.high:g}]"

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that are allowed if all are."""
        return self.low, self.high


@dataclass(frozen=True)
class Integers:
    """Any integer from low to high, both included, all equally likely."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"randint [{self.low}, {self.high}]"

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that are allowed if all are."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of the values, all equally likely."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"choice {list(self.values)}"

    @property
    def extremes(self) -> tuple[Any, ...]:
        """All values."""
        return self.values


@dataclass(frozen=True)
class Grid:
    """Each of the values in turn, with everything else."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"grid {list(self.values)}"

    @property
    def extremes(self) -> tuple[Any, ...]:
        """All values."""
        return self.values


Distribution = Uniform | LogUniform | Integers | Choice | Grid
KINDS = ("uniform", "loguniform", "choice", "randint", "grid")
Space = dict[str, Distribution]


def parse_space(search: object, base: Mapping[str, Any]) -> Space:
    """Distributions by dotted field, from a recipe's ``search``; every value that can be drawn is allowed.

    Parameters
    ----------
    search : ``{"stabilize.weight": {"loguniform": [0.1, 10]}, ...}``; sections may be nested instead of dotted.
    base : fields of the experiment that the values are put into.

    Raises
    ------
    InputError : a field that does not exist or is not searched, a distribution that is none, or a value in its range
        that the field refuses.
    """
    if not isinstance(search, Mapping) or not search:
        raise InputError("search", search, "name fields, as in search: {stabilize.weight: {loguniform: [0.1, 10]}}")
    space: Space = {}
    known = Experiment().flat()
    for field, given in _leaves(search, ""):
        if field.partition(".")[0] in _NOT_SEARCHED:
            raise InputError("search", field, f"{', '.join(_NOT_SEARCHED)} are the sweep's own and cannot be searched")
        if field not in known:
            raise InputError("search", field, "there is no such field; --help lists them")
        space[field] = _distribution(field, given)
        for value in space[field].extremes:
            try:
                Experiment.parse(merge(base, nested({field: value})))
            except InputError as error:
                where = "" if error.field == field else f" with {field} {value!r}"
                raise InputError(f"search.{error.field}", error.value, error.allowed + where) from None
    for group in _JUDGED_TOGETHER:
        _check_together([field for field in group if field in space], space, base)
    return space


def _check_together(group: Sequence[str], space: Space, base: Mapping[str, Any]) -> None:
    """Refuse what is not allowed together although each is beside the recipe's; of numbers the ends decide."""
    if len(group) < 2:
        return
    for values in itertools.product(*(_ends(space[field].extremes) for field in group)):
        drawn = dict(zip(group, values, strict=True))
        try:
            Experiment.parse(merge(base, nested(drawn)))
        except InputError as error:
            given = ", ".join(f"{field} {value!r}" for field, value in drawn.items() if field != error.field)
            raise InputError(f"search.{error.field}", error.value, f"{error.allowed} (with {given})") from None


def _ends(values: Sequence[Any]) -> Sequence[Any]:
    numbers = [value for value in values if isinstance(value, int | float)]
    return (min(numbers), max(numbers)) if len(numbers) == len(values) else values


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``{"threat.eps": 0.3}`` as ``{"threat": {"eps": 0.3}}``; what is nested already stays so."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if not isinstance(name, str):
            raise InputError(str(name), value, "there is no such field; --help lists them")
        found = merge(found, branch(name, nested(value) if isinstance(value, Mapping) else value))
    return found


def _leaves(search: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, below in search.items():
        field = f"{prefix}{name}"
        if not isinstance(below, Mapping) or not below:
            raise InputError(f"search.{field}", below, _allowed())
        if set(below) & set(KINDS):
            yield field, below
        else:
            yield from _leaves(below, f"{field}.")


def _distribution(field: str, given: Mapping[str, Any]) -> Distribution:
    kind, *others = given
    if others or kind not in KINDS:
        raise InputError(f"search.{field}", dict(given), _allowed())
    values = given[kind]
    if not isinstance(values, list) or not values:
        raise InputError(f"search.{field}", values, f"{kind} takes a list")
    if kind in ("choice", "grid"):
        several = tuple(tuple(one) if isinstance(one, list) else parse_number(one) for one in values)
        if len(set(map(repr, several))) < len(several):
            raise InputError(f"search.{field}", values, f"{kind} takes each value once")
        return Choice(several) if kind == "choice" else Grid(several)
    numbers = [one for one in map(parse_number, values) if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(values) != 2 or len(numbers) != 2:
        raise InputError(f"search.{field}", values, f"{kind} takes two numbers, lowest and highest")
    low, high = numbers
    if not -_MOST < low < high < _MOST:
        raise InputError(f"search.{field}", values, f"the lowest must be below the highest, both within {_MOST:g}")
    if kind == "randint":
        if not (isinstance(low, int) and isinstance(high, int)):
            raise InputError(f"search.{field}", values, "randint takes integers, both included")
        return Integers(low, high)
    if kind == "loguniform" and low <= 0:
        raise InputError(f"search.{field}", values, "loguniform needs a lowest above 0")
    return LogUniform(float(low), float(high)) if kind == "loguniform" else Uniform(float(low), float(high))


def _allowed() -> str:
    return "give one of uniform: [low, high], loguniform: [low, high], randint: [low, high], choice: [...], grid: [...]"
