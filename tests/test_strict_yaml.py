"""YAML of which nothing is lost."""

from __future__ import annotations

import pytest
import yaml

from distsens.strict_yaml import DuplicateKeyError, load_yaml


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("training: {epochs: 1}\ndata: {}\ntraining: {lr: 1}", "training is there twice, in lines 1 and 3"),
        ("data:\n  name: mnist\n  limit: 3\n  name: digits", "name is there twice, in lines 2 and 4"),
        ("data: {name: mnist, name: digits}", "name is there twice, in line 1"),
        ("sweep:\n  rungs:\n  - {a: 1}\n  - {a: 1, b: 2, 'a': 3}", "a is there twice, in line 4"),
        ("search: {seed: {grid: [{x: 1, x: 1}]}}", "x is there twice"),
        ("? [a]\n: {b: 1, b: 2}", "b is there twice"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_at_any_depth_with_its_lines(text: str, says: str) -> None:
    with pytest.raises(DuplicateKeyError, match=says):
        load_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: {x: 1}\nb: {x: 1}",
        "base: &base {x: 1, y: 2}\nother: {<<: *base, x: 3}\nthird: {deep: {<<: *base}}",
        "a: &a {b: &b {x: 1}}\nc: {<<: *b, x: 2}\nd: *a",
        "- a\n- a",
        "1: a\n'1': b",
        "8/255",
        "",
    ],
)
def test_everything_else_is_what_yaml_says(text: str) -> None:
    assert load_yaml(text) == yaml.safe_load(text)


def test_nothing_is_constructed_but_plain_values() -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml("!!python/object/apply:os.getcwd []")
