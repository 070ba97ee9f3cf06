"""How numbers, shares and orders are said, so that none says more than was counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from distsens.report.style import bare

# Values this close are equal but for the order in which they were added.
_EQUAL = 1e-9


def percent(share: float) -> str:
    """A ratio as the user gave it."""
    return f"{100.0 * share:.3g} %"


def counted(share: float, images: int) -> str:
    """A share of images with the number of images that it is."""
    return f"{share:.1%} ({round(share * images):,} of {images:,})"


def accuracy(row: Any) -> str:
    """A row of :func:`distsens.analysis.measured_rows`: share, count and interval."""
    return f"{counted(row['accuracy'], int(row['images']))[:-1]}; {row['low']:.1%} to {row['high']:.1%})"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), words[-1]])


def only_least(values: Mapping[Any, float]) -> Any | None:
    """The key of the least value, None if there is but one value or another is as small."""
    rising = sorted(values.items(), key=lambda item: item[1])
    return rising[0][0] if len(rising) > 1 and not same(rising[0][1], rising[1][1]) else None


def only_most(values: Mapping[Any, float]) -> Any | None:
    """The key of the largest value, None if there is but one value or another is as large."""
    return only_least({key: -value for key, value in values.items()})


def same(one: float, other: float) -> bool:
    """Whether two values are equal but for rounding."""
    return abs(one - other) <= _EQUAL * max(1.0, abs(one), abs(other))


def reach(values: Mapping[str, float], shape: str) -> str:
    """The extremes with the layers that they are of, where one alone has them: ``0.1 (conv1) to 0.4 (fc2)``."""
    least, most = min(values.values()), max(values.values())
    low, high = (
        shape.format(value) + ("" if layer is None else f" ({bare(str(layer))})")
        for value, layer in ((least, only_least(values)), (most, only_most(values)))
    )
    return shape.format(least) if shape.format(least) == shape.format(most) else f"{low} to {high}"


def ranked(values: Mapping[str, float], shape: str, *, most_first: bool) -> str | None:
    """Names by value, equal ones together; None if all are equal, as there is no order then."""
    groups: list[tuple[float, list[str]]] = []
    for name, value in sorted(values.items(), key=lambda item: -item[1] if most_first else item[1]):
        if groups and same(groups[-1][0], value):
            groups[-1][1].append(name)
        else:
            groups.append((value, [name]))
    if len(groups) < 2:
        return None
    return ", ".join(f"{listed(names)} {shape.format(value)}" for value, names in groups)


def of_layers(sensitive: pd.Series[bool]) -> str:
    """How many neurons are sensitive of how many: ``12 of 96``."""
    return f"{int(sensitive.sum()):,} of {len(sensitive):,}"
