import os
import random
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distsens.errors import InputError
from distsens.storage import LocalPlace, open_place

StartWriter = Callable[..., "subprocess.Popen[str]"]


def everything_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def is_whole(content: bytes) -> bool:
    """Whether this is a file of `writer_process.put_for_ever`: one byte, repeated a million times."""
    return len(content) == 1_000_000 and content == content[:1] * 1_000_000


def test_a_relative_root_is_refused() -> None:
    with pytest.raises(InputError, match="absolute"):
        LocalPlace(Path("runs"))


def test_put_leaves_the_file_alone_and_nothing_else(tmp_path: Path) -> None:
    LocalPlace(tmp_path).put("a/b", b"x")
    LocalPlace(tmp_path).put("a/b", b"y")
    assert everything_in(tmp_path) == {tmp_path / "a", tmp_path / "a" / "b"}


def test_a_file_has_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        LocalPlace(tmp_path).put("a", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_file_and_folders_are_durable_before_the_key_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append("sync file" if path.is_file() else f"sync folder {path.relative_to(tmp_path)}")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    place = LocalPlace(tmp_path)
    place.put("a/b/c", b"x")
    assert events == ["sync folder .", "sync folder a", "sync file", "rename", "sync folder a/b"]
    events.clear()
    place.delete("a/b/c")
    assert events == ["sync folder a/b"]


def test_a_reader_sees_the_old_file_or_the_new_one_never_half(tmp_path: Path, start_writer: StartWriter) -> None:
    start_writer("put", tmp_path)
    place = LocalPlace(tmp_path)
    seen: set[int] = set()
    end = time.monotonic() + 30
    while len(seen) < 50 and time.monotonic() < end:
        content = place.get("folder/file")
        assert is_whole(content)
        assert place.keys() == ["folder/file"]
        seen.add(content[0])
    assert len(seen) == 50, "the writer has not overwritten the file while it was read"


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path, start_writer: StartWriter) -> None:
    place = LocalPlace(tmp_path)
    for _ in range(8):
        writer = start_writer("put", tmp_path)
        time.sleep(random.uniform(0, 0.05))
        writer.kill()
        writer.wait()
        assert place.keys() == ["folder/file"]
        assert is_whole(place.get("folder/file"))
    place.delete("folder")
    assert everything_in(tmp_path) == set(), "delete takes what killed writers left"


def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    place.put("a", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on file sizes makes a write fail in its middle, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            place.put("a", b"n" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert place.get("a") == b"old"
    assert everything_in(tmp_path) == {tmp_path / "a"}


def test_put_under_a_file_fails_and_leaves_it(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    place.put("a", b"x")
    with pytest.raises(OSError, match="File exists"):
        place.put("a/b/c", b"y")
    assert everything_in(tmp_path) == {tmp_path / "a"}
    assert place.get("a") == b"x"


def test_files_of_others_are_not_listed(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    place.put("a", b"x")
    for name in (".tmp-0123456789abcdef", ".DS_Store", "my notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert place.keys() == ["a"]


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    # A loop of links fails for root too, whom permissions do not stop.
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        open_place(f"{tmp_path}/loop/run").keys()


@pytest.mark.parametrize("folder", ["", "new", "new/and/deep"])
def test_a_writable_place_passes_and_nothing_remains(tmp_path: Path, folder: str) -> None:
    open_place(os.path.join(tmp_path, folder)).check_writable()
    assert everything_in(tmp_path) == set()


@pytest.mark.parametrize("folder", ["file", "file/below", "file/far/below", "dangling", "dangling/below", "loop"])
def test_a_place_that_cannot_be_written_is_refused_and_nothing_remains(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to("loop")
    before = everything_in(tmp_path)
    place = open_place(f"{tmp_path}/{folder}")
    with pytest.raises(InputError) as caught:
        place.check_writable()
    assert (caught.value.field, caught.value.value) == ("storage.path", place.url)
    assert "\n" not in str(caught.value)
    assert everything_in(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("folder", ["/proc", "/proc/runs/new"])
def test_a_file_system_that_takes_no_files_is_refused(folder: str) -> None:
    with pytest.raises(InputError, match="can be written"):
        open_place(folder).check_writable()


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        open_place(f"{tmp_path}/new").check_writable()


def test_what_is_no_file_is_absent_and_what_cannot_be_looked_at_is_an_error(tmp_path: Path) -> None:
    place = open_place(str(tmp_path))
    place.put("file", b"1")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for key in ("folder", "pipe", "file/below", "none"):
        with pytest.raises(FileNotFoundError):
            place.get(key)
    with pytest.raises(OSError, match="Too many levels"):
        place.get("loop")
