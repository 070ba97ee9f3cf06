"""YAML of which nothing is lost."""

from __future__ import annotations

import math
import time

import pytest
import yaml

from distsens.strict_yaml import DuplicateKeyError, RefusedYamlError, load_yaml


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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            (text, text)
            for text in ("1:30", "1:30:00", "1:30.5", "017", "0o17", "0x10", "0b11", "08", "1_", "1__0", "1e5")
        ),
        *(
            (text, text)
            for text in ("1e-3", "1.5e3", "2026-01-02", "2026-02-30", "2026-01-02 10:11:12", "=", "y", "1_0:30")
        ),
        *(
            ("12", 12),
            ("-3", -3),
            ("+3", 3),
            ("0", 0),
            ("50_000", 50_000),
            ("9" * 300, int("9" * 300)),
            ("9" * 301, "9" * 301),
        ),
        *(
            ("0.5", 0.5),
            (".5", 0.5),
            ("-1.", -1.0),
            ("08.5", 8.5),
            ("1.0e-3", 1e-3),
            ("1_000.5", 1000.5),
            (".inf", math.inf),
        ),
        *(("yes", True), ("off", False), ("~", None), ("", None), ("---", None), ("\ufeffa: 1", {"a": 1})),
    ],
)
def test_plain_text_is_a_number_where_everybody_reads_it_so(text: str, value: object) -> None:
    assert load_yaml(text) == value
    assert type(load_yaml(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 21 + "]" * 21,
        "- " * 50_000,
        "? " * 50_000,
        "{a: " * 30 + "}" * 30,
        "[" + "1," * 10_000 + "]",
        "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))]),
        "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{b: *a{n - 1}}}" for n in range(1, 30))]),
        "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9))]),
        "&a [*a]",
        "a: &a {b: [*a]}",
        "#" * 200_001,
    ],
)
def test_what_has_no_end_is_refused_at_once(text: str) -> None:
    begun = time.monotonic()
    with pytest.raises(RefusedYamlError):
        load_yaml(text)
    assert time.monotonic() - begun < 2


def test_twenty_levels_and_values_that_are_repeated_are_read() -> None:
    assert load_yaml("[" * 20 + "]" * 20)
    assert load_yaml("a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a}") == {"a": {"x": 1}, "b": [{"x": 1}] * 2, "c": {"x": 1}}


@pytest.mark.parametrize(
    "text", ["!!int 3", "! a", "!x a", "!!set {a}", "!!binary a", "!!timestamp a", "a: <<", "a: *b"]
)
def test_tags_and_what_they_would_make_are_not_read(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


def test_nothing_is_constructed_but_plain_values() -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml("!!python/object/apply:os.getcwd []")
