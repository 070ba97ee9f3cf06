import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsens.errors import InputError
from distsens.storage.keys import check_key, is_key

GOOD = ["run.json", "checkpoints/epoch-0003/model.safetensors", "a/b/c", "_x", "eps=8+seed@2", "a..b", "x" * 200]
BAD = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    "..",
    "a/../b",
    ".",
    "./a",
    "a/.tmp-1",
    ".hidden",
    "a b",
    "a\n",
    "a\0",
    "é",
    "x" * 201,
]


@pytest.mark.parametrize("key", GOOD)
def test_a_plain_relative_path_is_a_key(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize("key", BAD)
def test_anything_else_is_refused_and_named(key: str) -> None:
    with pytest.raises(InputError) as caught:
        check_key(key)
    assert caught.value.value == key


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b.c", "-", ".x"]), min_size=1).map("/".join))
def test_a_key_never_leads_out_of_its_place(key: str) -> None:
    if is_key(key):
        assert not {"", ".", ".."} & set(key.split("/"))
