"""What a benchmark found: numbers with their spread and, where there is one, their target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from distsens.benchmark.rounds import Spread

Unit = Literal["x", "%", "points", "1/s", "MiB"]


@dataclass(frozen=True)
class Finding:
    """One number.

    name : stable, ``part/subject/what``.
    title : in plain words.
    value : median over rounds; ``low`` and ``high`` are the quartiles (of a single value, itself).
    target : what it is to be ``at_least`` (or, if that is false, at most); None where there is no target.
    details : what else was measured on the way, by stable names.
    """

    name: str
    title: str
    unit: Unit
    spread: Spread
    target: float | None = None
    at_least: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.spread.median >= self.target if self.at_least else self.spread.median <= self.target

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "value": self.spread.median,
            "low": self.spread.low,
            "high": self.spread.high,
            "target": None if self.target is None else {"at_least" if self.at_least else "at_most": self.target},
            "met": self.met,
            "details": dict(self.details),
        }


def percent_more(spread: Spread) -> Spread:
    """A ratio as percent on top."""
    return Spread(*(100.0 * (value - 1.0) for value in (spread.median, spread.low, spread.high)))


@dataclass(frozen=True)
class Report:
    """What ``--summary`` writes, with these keys.

    environment : see :func:`distsens.benchmark.describe_environment`.
    settings : ``parts``, ``rounds``, ``device``, ``threads``, ``data`` and ``quick``.
    findings : see :class:`Finding`; ``target`` is ``{"at_least": x}``, ``{"at_most": x}`` or null, and ``met`` says
        whether it is met.
    skipped : one line for each thing that was not measured, and why.
    """

    environment: dict[str, Any]
    settings: dict[str, Any]
    findings: list[Finding]
    skipped: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self) | {"findings": [finding.to_dict() for finding in self.findings]}
