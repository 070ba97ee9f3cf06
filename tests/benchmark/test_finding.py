from __future__ import annotations

import json

import pytest

from distsens.benchmark import Finding, Report
from distsens.benchmark.finding import percent_more
from distsens.benchmark.rounds import Spread


@pytest.mark.parametrize(
    ("value", "target", "at_least", "met"),
    [
        (3.0, 3.0, True, True),
        (2.9, 3.0, True, False),
        (8.0, 8.0, False, True),
        (8.1, 8.0, False, False),
        (1.0, None, True, None),
    ],
)
def test_a_target_is_met_by_the_median(value: float, target: float | None, at_least: bool, met: bool | None) -> None:
    finding = Finding("a/b/c", "A", "x", Spread(value, 0.0, 100.0), target=target, at_least=at_least)
    assert finding.met is met
    assert finding.to_dict()["met"] is met


def test_a_ratio_becomes_percent_on_top() -> None:
    assert percent_more(Spread(1.25, 0.75, 1.5)) == Spread(25.0, -25.0, 50.0)


def test_a_report_is_plain_json() -> None:
    finding = Finding("a/b/c", "A", "%", Spread(1.0, 0.5, 2.0), target=8.0, at_least=False, details={"cpu": 1.1})
    read = json.loads(json.dumps(Report({"cpu": "x"}, {"parts": ("attack",)}, [finding], ["b"]).to_dict()))
    assert read == {
        "environment": {"cpu": "x"},
        "settings": {"parts": ["attack"]},
        "findings": [
            {
                "name": "a/b/c",
                "title": "A",
                "unit": "%",
                "value": 1.0,
                "low": 0.5,
                "high": 2.0,
                "target": {"at_most": 8.0},
                "met": True,
                "details": {"cpu": 1.1},
            }
        ],
        "skipped": ["b"],
    }
