"""What every kind of place promises, and how one is opened."""

import os
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsens.errors import InputError
from distsens.storage import Place, check_room, open_place
from distsens.storage.s3 import S3Place


def test_get_returns_what_was_put_last(place: Place) -> None:
    place.put("a/file", b"a longer first content")
    place.put("a/file", b"second")
    assert place.get("a/file") == b"second"
    place.put("a/file", b"")
    assert place.get("a/file") == b""


@pytest.mark.parametrize("key", ["nothing", "a", "a/file/below", "a/nothing"])
def test_get_of_an_absent_key_is_file_not_found(place: Place, key: str) -> None:
    place.put("a/file", b"")
    with pytest.raises(FileNotFoundError):
        place.get(key)


def test_a_place_that_nothing_was_put_in_has_no_keys(place: Place) -> None:
    assert place.keys() == []
    assert place.keys("a/b") == []


def test_keys_are_sorted_and_a_prefix_stands_for_whole_parts(place: Place) -> None:
    for key in ["epoch-10/model", "epoch-1/model", "epoch-1/a/b", "epoch-1.json", "z"]:
        place.put(key, b"")
    assert place.keys() == ["epoch-1.json", "epoch-1/a/b", "epoch-1/model", "epoch-10/model", "z"]
    assert place.keys("epoch-1") == ["epoch-1/a/b", "epoch-1/model"]
    assert place.keys("epoch-1/model") == ["epoch-1/model"]
    assert place.keys("z/below") == []


@pytest.mark.parametrize("prefix", ["epoch-1", "epoch-1/model", "epoch-1.json", "absent", "z/below"])
def test_delete_takes_exactly_the_keys_under_the_prefix(place: Place, prefix: str) -> None:
    for key in ["epoch-10/model", "epoch-1/model", "epoch-1/a/b", "epoch-1.json", "z"]:
        place.put(key, b"")
    remaining = set(place.keys()) - set(place.keys(prefix))
    place.delete(prefix)
    assert set(place.keys()) == remaining


@pytest.mark.parametrize("key", ["", "../outside", "/etc/passwd", "a/../../b"])
def test_a_string_that_is_no_key_is_refused_by_every_method(place: Place, key: str) -> None:
    for method in (place.get, place.delete, place.child, lambda bad: place.put(bad, b"")):
        with pytest.raises(InputError):
            method(key)


def test_a_child_holds_the_keys_under_its_name(place: Place) -> None:
    child = place.child("run-1")
    child.put("a/b", b"x")
    assert place.keys() == ["run-1/a/b"]
    assert child.keys() == ["a/b"]
    assert place.child("run-2").keys() == []


def test_a_place_can_be_opened_again_by_its_url(place: Place) -> None:
    place.child("a").put("b", b"x")
    assert open_place(place.child("a").url) == place.child("a")
    assert open_place(place.child("a").url).get("b") == b"x"


def test_a_place_travels_to_another_process_by_pickle(place: Place) -> None:
    place.put("a", b"x")
    travelled = pickle.dumps(place)
    assert len(travelled) < 1000
    assert pickle.loads(travelled) == place
    assert pickle.loads(travelled).get("a") == b"x"


def test_a_writable_place_passes_and_nothing_remains(place: Place) -> None:
    place.check_writable()
    place.child("new/and/deep").check_writable()
    assert place.keys() == []


def test_many_threads_may_use_one_place(place: Place) -> None:
    def write_and_read(number: int) -> bytes:
        place.put(f"{number}/a", bytes([number]))
        return place.get(f"{number}/a")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write_and_read, range(32))) == [bytes([number]) for number in range(32)]
    assert len(place.keys()) == 32


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_the_url_of_any_local_folder_leads_back_to_it(name: str) -> None:
    place = open_place(os.path.abspath("/" + name))
    assert open_place(place.url) == place


@pytest.mark.parametrize(
    ("below", "most"), [("s3://bucket/{}", 1024 - len("s3://bucket/") - 320), ("/{}", 4095 - 1 - 320)]
)
def test_a_storage_has_room_for_the_names_of_what_is_kept_there(below: str, most: int) -> None:
    prefix = ("0123456789/" * 500)[: most - 1].rstrip("/") + "a" * 20
    check_room(open_place(below.format(prefix[: most - 20])))
    with pytest.raises(InputError, match="names below it would be longer than"):
        check_room(open_place(below.format(prefix)))


def test_a_relative_path_is_made_absolute_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = open_place("runs/../results")
    monkeypatch.chdir("/")
    place.put("a", b"x")
    assert (tmp_path / "results" / "a").read_bytes() == b"x"
    assert place.url == (tmp_path / "results").as_uri()


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_place("~/runs") == open_place(f"{tmp_path}/runs")


@pytest.mark.parametrize("url", ["S3://key:s3cret@bucket", "https://key:s3cret@host/bucket", "s3:/key:s3cret@bucket"])
def test_an_address_with_a_secret_is_not_repeated(url: str) -> None:
    with pytest.raises(InputError) as caught:
        open_place(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3:/bucket/runs", "S3://bucket", "https://host/x", "file://relative", "", "a\0b"])
def test_an_address_that_is_neither_a_folder_nor_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"a local folder.* or s3://bucket/prefix") as caught:
        open_place(url)
    assert (caught.value.field, caught.value.value) == ("storage.path", url)


def test_places_that_a_process_is_sent_share_one_connection(
    moto: dict[str, str], use_s3: Callable[[Mapping[str, str]], str]
) -> None:
    place = S3Place.at(use_s3(moto))
    one, other = (pickle.loads(pickle.dumps(place)) for _ in range(2))
    assert one._client is other._client
    assert one._client is not place._client
