"""Names in MLflow are its own kind of names, and as different as what they stand for."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

from distsens.tracking.names import names_in_mlflow

# As layers, classes and models are called, and as they might be.
NAMES = st.lists(
    st.text(st.sampled_from("abAB._/-@# é:\n\u212a\ud800") | st.characters(), max_size=12)
    | st.text(st.sampled_from("aA@"), min_size=240, max_size=260)
    | st.sampled_from(
        ["layer.conv@1", "layer.conv#1", "layer.conv_1", "a//b", "a/./b", "../a", "..a/b", "/a", "a/", ""]
    ),
    unique=True,
    max_size=8,
)


@given(NAMES)
@example(["a@b", "a#b", "a_b"])
@example(["a" * 250, "a" * 251, "a" * 252])
@example(["Conv", "conv", "CONV", "cönv"])
def test_distinct_names_are_distinct_in_mlflow_whatever_its_store_thinks_of_letters(names: list[str]) -> None:
    found = names_in_mlflow(names)
    assert found.keys() == set(names)
    assert len({one.casefold() for one in found.values()}) == len(names)
    for one in found.values():
        assert len(one) <= 250
        for check in (_validate_metric_name, _validate_param_name, _validate_tag_name):
            check(one)
    # What was once written down is a name like any other.
    again = names_in_mlflow([*names, *found.values()])
    assert len({again[name] for name in {*names, *found.values()}}) == len({*names, *found.values()})


@given(NAMES, NAMES)
def test_a_name_does_not_depend_on_the_order_or_on_others_unless_they_differ_in_case_alone(
    names: list[str], others: list[str]
) -> None:
    together = names_in_mlflow([*others, *names])
    assert together == names_in_mlflow([*reversed(names), *reversed(others)])
    lower = [name for name in names if name == name.lower() and name.isascii()]
    assert {name: together[name] for name in lower} == names_in_mlflow(lower)


@given(st.from_regex(r"[a-z0-9_]{1,9}([./][a-z0-9_]{1,9}){0,3}", fullmatch=True))
def test_a_name_that_mlflow_takes_is_left_as_it_is(name: str) -> None:
    assert names_in_mlflow([name, "other"])[name] == name
    assert names_in_mlflow([name.upper()]) == {name.upper(): name.upper()}
