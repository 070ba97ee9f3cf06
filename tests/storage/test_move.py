from __future__ import annotations

from pathlib import Path

import pytest

from distsens.storage import Move


@pytest.mark.parametrize(
    ("before", "now", "highest"),
    [
        ("/a/runs", "/a/elsewhere", ("/a/runs", "/a/elsewhere")),
        ("/a/project/runs", "/a/renamed/runs", ("/a/project", "/a/renamed")),
        ("/a/project/x/runs", "/b/y/x/runs", ("/a/project", "/b/y")),
        ("file:///a/my%20runs", "/b/my runs", ("/a", "/b")),
        ("/runs", "/mnt/runs", ("/", "/mnt")),
    ],
)
def test_what_both_paths_end_with_was_not_renamed(before: str, now: str, highest: tuple[str, str]) -> None:
    assert Move.between(before, now) == Move(*map(Path, highest))


@pytest.mark.parametrize(("before", "now"), [("/a/runs/", "/a/runs"), ("s3://bucket/a", "/a"), ("/a", "s3://bucket/a")])
def test_the_same_place_and_buckets_have_not_moved(before: str, now: str) -> None:
    assert Move.between(before, now) is None


def test_things_of_the_runs_are_followed_and_what_others_use_too_is_only_looked_for(tmp_path: Path) -> None:
    move = Move.between(f"{tmp_path}/old/runs", f"{tmp_path}/new/runs")
    assert move is not None
    (tmp_path / "new" / "runs" / "a").mkdir(parents=True)
    old, new = f"{tmp_path}/old/runs/a", f"{tmp_path}/new/runs/a"
    assert move.followed(old) == move.found(old) == new
    assert move.followed(f"{old}#best") == f"{new}#best"
    assert move.followed(f"{old}/checkpoints/epoch-0001#12") == f"{new}/checkpoints/epoch-0001#12"  # neither is there
    assert move.followed(Path(old).as_uri()) == Path(new).as_uri()
    Path(old).mkdir(parents=True)
    assert (move.followed(old), move.found(old)) == (new, old)
    (tmp_path / "old" / "runs" / "b").mkdir()
    left = f"{tmp_path}/old/runs/b"
    assert move.followed(left) == move.found(left) == left


@pytest.mark.parametrize("address", ["runs:/abc", "models:/m@champion", "s3://bucket/old", "data", "", "/other/data"])
def test_what_is_not_below_is_as_it_was(address: str) -> None:
    move = Move(Path("/old"), Path("/new"))
    assert move.followed(address) == move.found(address) == address
