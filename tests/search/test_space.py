"""What can be searched is said in the recipe, and what cannot is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsens.errors import InputError
from distsens.search import Choice, Grid, Integers, LogUniform, Uniform, nested, parse_space


def test_each_distribution_is_read_and_says_what_it_is() -> None:
    space = parse_space(
        {
            "stabilize.weight": {"loguniform": [0.1, 10]},
            "stabilize.ratio": {"uniform": ["1/20", 0.5]},
            "attack.steps": {"randint": [5, 10]},
            "stabilize.distance": {"choice": ["l1", "l2"]},
            "seed": {"grid": [0, 1, 2]},
        },
        {},
    )
    assert space == {
        "stabilize.weight": LogUniform(0.1, 10.0),
        "stabilize.ratio": Uniform(0.05, 0.5),
        "attack.steps": Integers(5, 10),
        "stabilize.distance": Choice(("l1", "l2")),
        "seed": Grid((0, 1, 2)),
    }
    assert [str(one) for one in space.values()] == [
        "loguniform [0.1, 10]",
        "uniform [0.05, 0.5]",
        "randint [5, 10]",
        "choice ['l1', 'l2']",
        "grid [0, 1, 2]",
    ]


def test_sections_may_be_nested_as_flags_make_them() -> None:
    flags = {"stabilize": {"weight": {"loguniform": [0.1, 10]}, "layers": {"choice": [["auto"], ["network.conv*"]]}}}
    space = parse_space(flags, {})
    assert space["stabilize.weight"] == LogUniform(0.1, 10.0)
    assert space["stabilize.layers"] == Choice((("auto",), ("network.conv*",)))


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (None, "search: got None; name fields"),
        ({}, "search: got {}; name fields"),
        ({"stabilize.wieght": {"uniform": [0, 1]}}, "search: got 'stabilize.wieght'; there is no such field"),
        ({"stabilize": {"uniform": [0, 1]}}, "search: got 'stabilize'; there is no such field"),
        ({"workers.num": {"choice": [1, 2]}}, "cannot be searched"),
        ({"storage.path": {"choice": ["a"]}}, "cannot be searched"),
        ({"stabilize.weight": 3}, "give one of uniform"),
        ({"stabilize.weight": {"normal": [0, 1]}}, "give one of uniform"),
        ({"stabilize.weight": {"uniform": [0, 1], "choice": [2]}}, "give one of uniform"),
        ({"stabilize.weight": {"uniform": 1}}, "uniform takes a list"),
        ({"stabilize.weight": {"uniform": [1]}}, "takes two numbers"),
        ({"stabilize.weight": {"uniform": [1, 2, 3]}}, "takes two numbers"),
        ({"stabilize.weight": {"uniform": ["a", 2]}}, "takes two numbers"),
        ({"stabilize.weight": {"uniform": [2, 1]}}, "the lowest must be below the highest"),
        ({"stabilize.weight": {"uniform": [0, float("inf")]}}, "the lowest must be below the highest"),
        ({"stabilize.weight": {"uniform": [0, float("nan")]}}, "the lowest must be below the highest"),
        ({"attack.steps": {"randint": [1, 10**400]}}, "the lowest must be below the highest"),
        ({"stabilize.weight": {"loguniform": [0, 1]}}, "loguniform needs a lowest above 0"),
        ({"attack.steps": {"randint": [1.5, 4]}}, "randint takes integers"),
        ({"attack.steps": {"uniform": [1, 4]}}, "search.attack.steps: got 1.0; input should be a valid integer"),
        ({"stabilize.ratio": {"uniform": [0.1, 1.5]}}, "search.stabilize.ratio: got 1.5;"),
        ({"stabilize.ratio": {"uniform": [0, 1]}}, "search.stabilize.ratio: got 0.0;"),
        ({"stabilize.distance": {"choice": ["l1", "l7"]}}, "search.stabilize.distance: got 'l7'"),
        ({"stabilize.distance": {"choice": []}}, "choice takes a list"),
        ({"seed": {"grid": [1, 1]}}, "grid takes each value once"),
        ({"stabilize.warmup_end": {"uniform": [0.1, 0.9]}}, "search.stabilize.warmup_end: got 0.1; at least"),
        ({"threat.eps": {"uniform": [0.1, 8]}}, "search.threat.eps: got 8.0; pixels lie in"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_its_name(search: Any, said: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_space(search, {})
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "search",
    [
        {1: {"grid": [1]}},
        {"threat": {None: {"grid": [1]}}},
        {"threat": {1.5: {2: {"grid": [1]}}}},
        {True: {"grid": [1]}},
        {"a." * 5000: {"grid": [1]}},
        {"threat.eps": {"grid": [{"a": 1}]}},
        {"threat.eps": {"grid": [[[1]]]}},
        {"threat.eps": {"uniform": [10**400, 10**401]}},
        {"attack.steps": {"randint": [1, 10**400]}},
        {"threat.eps": {"grid": ["9" * 5000]}},
        {"threat.eps.x": {"grid": [1]}},
        {"data.augment": {"choice": [[{"a": 1}]]}},
        {"name": 3},
    ],
)
def test_what_is_no_space_at_all_is_refused_in_a_short_line(search: Any) -> None:
    with pytest.raises(InputError) as refused:
        parse_space(search, {})
    assert len(str(refused.value)) < 3_000


@pytest.mark.parametrize(
    ("search", "base", "said"),
    [
        (
            {"threat.eps": {"grid": [0.2, 0, 0.1]}, "objective.name": {"choice": ["standard", "trades"]}},
            {"objective": {"name": "standard"}},
            "search.threat.eps: got 0.0; at least 1e-06 with objective.name trades, as in 8/255 (with objective.name",
        ),
        (
            {"threat.eps": {"choice": [0, 0.1]}, "stabilize.weight": {"uniform": [0, 1]}},
            {"objective": {"name": "standard"}},
            "search.threat.eps: got 0.0; at least 1e-06 with stabilize.weight 1, as in 8/255 (with stabilize.weight 1",
        ),
        (
            {"threat.eps": {"uniform": [0.01, 0.3]}, "attack.step_size": {"uniform": [0.01, 0.3]}},
            {"threat": {"eps": 0.3}},
            "search.attack.step_size: got 0.3; at most 10 times eps (0.01)",
        ),
        (
            {"threat.eps": {"grid": [0.5, 3]}, "threat.norm": {"grid": ["l2", "linf"]}},
            {"threat": {"norm": "l2", "eps": 0.5}},
            "search.threat.eps: got 3.0; pixels lie in [0, 1], so a linf eps must too",
        ),
        (
            {"threat.eps": {"grid": [0, 0.1]}},
            {},
            "search.threat.eps: got 0.0; at least 1e-06 with objective",
        ),
    ],
)
def test_values_that_are_drawn_together_are_judged_together(search: Any, base: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_space(search, base)
    assert said in str(refused.value)


def test_values_are_judged_within_the_recipe_that_they_go_into() -> None:
    search = {"stabilize.warmup_start": {"uniform": [0.0, 0.8]}}
    with pytest.raises(InputError, match=r"with stabilize.warmup_start 0.8"):
        parse_space(search, {})
    assert parse_space(search, {"stabilize": {"warmup_end": 0.9}})


names = st.sampled_from("abc")


@given(st.dictionaries(st.tuples(names, names, names), st.integers(), min_size=1))
def test_nesting_dotted_names_keeps_every_value(fields: dict[tuple[str, str, str], int]) -> None:
    found = nested({".".join(path): value for path, value in fields.items()})
    for (first, second, third), value in fields.items():
        assert found[first][second][third] == value
