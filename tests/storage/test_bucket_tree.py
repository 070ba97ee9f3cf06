"""A bucket that holds a data set is listed and read as the folder that it is a copy of."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import boto3
import pytest

from distsens.data import LocalTree
from distsens.errors import InputError
from distsens.storage.bucket_tree import BucketTree

FILES = {
    "train/ant/a.png": b"1",
    "train/ant/with a space (2).png": b"22",
    "train/ant/deeper/c.png": b"3",
    "train/ant/.hidden/d.png": b"4",
    "train/bee/.e.png": b"5",
    "train/.cache/f.png": b"6",
    "test/bee/g.png": b"7",
    "readme.txt": b"8",
    "train-of-others/ant/i.png": b"9",
    "train.txt": b"10",
}


@pytest.fixture
def trees(
    tmp_path: Path, moto: dict[str, str], use_s3: Callable[[Mapping[str, str]], str]
) -> tuple[LocalTree, BucketTree]:
    url = f"{use_s3(moto)}/sets/insects"
    client = boto3.session.Session().client("s3")
    bucket = url.split("/")[2]
    client.put_object(Bucket=bucket, Key="sets/insects/train/cat/", Body=b"")  # as some tools mark folders
    client.put_object(Bucket=bucket, Key="sets/insects-of-others/train/fly/h.png", Body=b"9")
    for name, content in FILES.items():
        client.put_object(Bucket=bucket, Key=f"sets/insects/{name}", Body=content)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return LocalTree(tmp_path), BucketTree.at(url)


@pytest.mark.parametrize("folder", [".", "train", "./train", "train/ant", "test", "none", "./none"])
def test_folders_and_files_are_those_of_the_folder(trees: tuple[LocalTree, BucketTree], folder: str) -> None:
    local, bucket = trees
    assert bucket.folders(folder) == local.folders(folder)
    assert bucket.files(folder) == local.files(folder)
    assert bucket.beside(folder) == local.beside(folder)


def test_contents_are_read_whatever_the_name(trees: tuple[LocalTree, BucketTree]) -> None:
    _, bucket = trees
    assert {name: bucket.read(name) for name in FILES} == FILES
    with pytest.raises(FileNotFoundError):
        bucket.read("train/ant/none.png")


def test_a_stamp_changes_with_the_content(trees: tuple[LocalTree, BucketTree]) -> None:
    for tree in trees:
        before = tree.stamps(["train/ant/a.png", "test/bee/g.png", "none"])
        assert before[2] == "gone"
        if isinstance(tree, LocalTree):
            (tree.root / "train/ant/a.png").write_bytes(b"other")
            now = tree
        else:
            tree.place.put("train/ant/a.png", b"other")
            now = BucketTree(tree.place)
        after = now.stamps(["train/ant/a.png", "test/bee/g.png", "none"])
        assert after[0] != before[0]
        assert after[1:] == before[1:]


def test_a_tree_travels_without_its_listing(trees: tuple[LocalTree, BucketTree]) -> None:
    _, bucket = trees
    assert bucket.folders(".") == ("test", "train", "train-of-others")
    travelled = pickle.loads(pickle.dumps(bucket))
    assert travelled == bucket
    assert "_listed" not in vars(travelled)
    assert travelled.read("test/bee/g.png") == b"7"


def test_an_address_that_is_none_and_a_bucket_that_is_not_there_are_wrong_input(
    trees: tuple[LocalTree, BucketTree],
) -> None:
    with pytest.raises(InputError, match=r"data\.root: got 's3://X'; must be s3://bucket/prefix"):
        BucketTree.at("s3://X")
    with pytest.raises(
        InputError, match=r"data\.root: got 's3://no-such-bucket/a'; cannot be listed: .*no such bucket"
    ):
        BucketTree.at("s3://no-such-bucket/a").folders(".")
