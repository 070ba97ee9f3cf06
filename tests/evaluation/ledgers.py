"""Whole ledgers of images that nobody has judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distsens.evaluation import Ledger
from distsens.evaluation.ledger import broken_column, evaluations_column


def ledger_of(labels: Mapping[int, int], broken_by: Sequence[str | None], attacks: Sequence[str]) -> Ledger:
    """What an evaluation finds of images, with labels by their numbers, that are classified right as they are."""
    count = len(labels)
    columns: dict[str, Sequence[object]] = {
        "image": list(labels),
        "label": list(labels.values()),
        "prediction": list(labels.values()),
        "broken_by": broken_by,
        "adversarial_prediction": [None if by is None else -1 for by in broken_by],
        "distance": [None if by is None else 0.1 for by in broken_by],
        "evaluations": [5] * count,
        "violations": [0] * count,
        "not_finite": [False] * count,
    }
    for attack in attacks:
        columns[broken_column(attack)] = [by == attack for by in broken_by]
        columns[evaluations_column(attack)] = [4] * count
    return Ledger.of(columns)
