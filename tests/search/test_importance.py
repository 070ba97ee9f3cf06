"""The field that made the difference is named first."""

from __future__ import annotations

import numpy as np

from distsens.search import Choice, LogUniform, Uniform, importance


def test_the_field_that_decides_the_score_explains_most_of_it() -> None:
    space = {"weight": LogUniform(0.1, 10.0), "ratio": Uniform(0.0, 1.0), "layers": Choice((("a",), ("b",)))}
    random = np.random.default_rng(0)
    trials = []
    for _ in range(24):
        values = {
            "weight": float(10 ** random.uniform(-1, 1)),
            "ratio": float(random.uniform()),
            "layers": (("a",), ("b",))[random.integers(2)],
        }
        trials.append((values, float(np.log(values["weight"]))))
    shares = importance(space, trials)
    read_again = [({**values, "layers": list(values["layers"])}, score) for values, score in trials]
    assert importance(space, read_again) == shares, "lists read from JSON are the same choices"
    assert next(iter(shares)) == "weight"
    assert shares["weight"] > 0.8
    assert abs(sum(shares.values()) - 1) < 1e-6


def test_nothing_is_said_of_few_trials_or_of_equal_scores() -> None:
    space = {"ratio": Uniform(0.0, 1.0)}
    assert importance(space, [({"ratio": 0.1}, 0.1), ({"ratio": 0.2}, 0.2)]) == {}
    assert importance(space, [({"ratio": number / 10}, 0.5) for number in range(9)]) == {}


def test_nothing_is_said_where_the_fields_do_not_differ_and_the_scores_do() -> None:
    space = {"ratio": Uniform(0.0, 1.0), "layers": Choice((("a",), ("b",)))}
    assert importance(space, [({"ratio": 0.5, "layers": ("a",)}, number / 10) for number in range(5)]) == {}
