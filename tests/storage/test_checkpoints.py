import itertools
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsens.errors import InputError
from distsens.storage import Checkpoint, CheckpointError, Checkpoints, FileRecord, Found, Place, open_place

StartWriter = Callable[..., "subprocess.Popen[str]"]

FILES = {"model.safetensors": b"weights", "state/random.bin": bytes(range(256))}


@pytest.fixture
def checkpoints(place: Place) -> Checkpoints:
    return Checkpoints(place)


@contextmanager
def fresh_checkpoints() -> Iterator[Checkpoints]:
    """A new place for each example of hypothesis."""
    with tempfile.TemporaryDirectory() as folder:
        yield Checkpoints(open_place(folder))


def save(checkpoints: Checkpoints, epoch: int) -> None:
    checkpoints.save(epoch, FILES, experiment="digest", metrics={"robust": epoch / 8})


def leave_half_written(checkpoints: Checkpoints, epoch: int) -> None:
    save(checkpoints, epoch)
    checkpoints.place.delete(f"{checkpoints.prefix}/epoch-{epoch:04d}/manifest.json")


def epochs_stored(checkpoints: Checkpoints) -> set[int]:
    return {int(key.split("/")[1].removeprefix("epoch-")) for key in checkpoints.place.keys(checkpoints.prefix)}


def assert_comes_from_one_save(checkpoint: Checkpoint) -> None:
    """The files of `writer_process.save_for_ever` all carry the stamp that is among the metrics."""
    stamp = int(checkpoint.manifest.metrics["stamp"]) % 256
    assert checkpoint.files == dict.fromkeys(("model", "optimizer", "state/random"), bytes([stamp]) * 150_000)


# Saving and loading


def test_load_returns_what_was_saved(checkpoints: Checkpoints) -> None:
    manifest = checkpoints.save(3, FILES, experiment="digest", metrics={"robust": 0.5})
    assert checkpoints.load(3) == Checkpoint(manifest, FILES)
    assert (manifest.epoch, manifest.experiment, manifest.metrics) == (3, "digest", {"robust": 0.5})
    assert manifest.files == {name: FileRecord.of(data) for name, data in FILES.items()}


def test_the_layout_is_a_folder_for_each_epoch(checkpoints: Checkpoints) -> None:
    save(checkpoints, 3)
    save(checkpoints, 12345)
    names = ["manifest.json", "model.safetensors", "state/random.bin"]
    expected = [f"checkpoints/{folder}/{name}" for folder in ("epoch-0003", "epoch-12345") for name in names]
    assert checkpoints.place.keys() == expected
    assert [manifest.epoch for manifest in checkpoints.manifests()] == [3, 12345]


def test_64_megabytes_come_back(checkpoints: Checkpoints) -> None:
    data = random.Random(0).randbytes(1 << 20) * 64
    checkpoints.save(0, {"model": data}, experiment="", metrics={})
    assert checkpoints.load(0).files["model"] == data


def test_saving_over_an_epoch_replaces_it_whole(checkpoints: Checkpoints) -> None:
    save(checkpoints, 3)
    manifest = checkpoints.save(3, {"other": b"new"}, experiment="new", metrics={})
    assert checkpoints.load(3) == Checkpoint(manifest, {"other": b"new"})
    assert checkpoints.place.keys() == ["checkpoints/epoch-0003/manifest.json", "checkpoints/epoch-0003/other"]


@pytest.mark.parametrize(
    ("epoch", "files", "metrics", "error"),
    [
        (-1, FILES, {}, InputError),
        (3, {"manifest.json": b""}, {}, InputError),
        (3, {"../escape": b""}, {}, InputError),
        (3, FILES, {"robust": "high"}, ValueError),
    ],
)
def test_a_wrong_input_leaves_the_older_checkpoint(
    checkpoints: Checkpoints, epoch: int, files: dict[str, bytes], metrics: dict[str, float], error: type[Exception]
) -> None:
    save(checkpoints, 3)
    with pytest.raises(error):
        checkpoints.save(epoch, files, experiment="", metrics=metrics)
    assert checkpoints.load(3).files == FILES


def test_two_prefixes_do_not_see_each_other(checkpoints: Checkpoints) -> None:
    others = Checkpoints(checkpoints.place, prefix="averaged/checkpoints")
    save(checkpoints, 1)
    save(others, 2)
    assert [manifest.epoch for manifest in checkpoints.manifests()] == [1]
    assert [manifest.epoch for manifest in others.manifests()] == [2]


# Damage


def test_nothing_saved_is_nothing_found(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest() == Found(None, ())
    assert checkpoints.manifests() == []
    with pytest.raises(CheckpointError, match=r"epoch-0000: manifest\.json: is missing"):
        checkpoints.load(0)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("model.safetensors", None, "model.safetensors: is missing"),
        ("model.safetensors", b"weight", "model.safetensors: 6 bytes, the manifest says 7"),
        ("model.safetensors", b"Weights", "model.safetensors: its SHA-256 is not the one in the manifest"),
        ("manifest.json", None, "manifest.json: is missing: the checkpoint is not complete"),
        ("manifest.json", b'{"format": ', "manifest.json: is damaged: Expecting value"),
        ("manifest.json", b"\xff\xfe\xfd", "manifest.json: is damaged: "),
        ("manifest.json", b"[]", "manifest.json: is damaged: not a manifest"),
    ],
)
def test_newest_falls_back_over_a_damaged_checkpoint_and_says_why(
    checkpoints: Checkpoints, name: str, content: bytes | None, fault: str
) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2)
    key = f"checkpoints/epoch-0002/{name}"
    checkpoints.place.delete(key) if content is None else checkpoints.place.put(key, content)

    found = checkpoints.newest()
    assert found.checkpoint == checkpoints.load(1)
    (line,) = found.skipped
    assert line.startswith(f"checkpoint {checkpoints.place.url}/checkpoints/epoch-0002: {fault}")
    assert "\n" not in line
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(2)
    assert str(caught.value) == line


def test_a_checkpoint_moved_to_another_epoch_is_refused(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    for key in checkpoints.place.keys("checkpoints/epoch-0001"):
        checkpoints.place.put(key.replace("0001", "0009"), checkpoints.place.get(key))
    checkpoints.place.delete("checkpoints/epoch-0001")
    found = checkpoints.newest()
    assert found.checkpoint is None
    assert found.skipped[0].endswith("epoch-0009: manifest.json: belongs to epoch 1")


def test_a_place_that_cannot_be_read_is_an_error_and_no_reason_to_fall_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_place(str(tmp_path)))
    save(checkpoints, 1)
    save(checkpoints, 2)
    model = tmp_path / "checkpoints" / "epoch-0002" / "model.safetensors"
    model.unlink()
    model.symlink_to(model.name)
    with pytest.raises(OSError, match="Too many levels"):
        checkpoints.newest()


@settings(max_examples=60)
@given(st.data())
def test_no_flipped_bit_and_no_truncation_goes_unnoticed(data: st.DataObject) -> None:
    with fresh_checkpoints() as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
        sound = checkpoints.load(2)
        key = data.draw(st.sampled_from(checkpoints.place.keys("checkpoints/epoch-0002")))
        content = bytearray(checkpoints.place.get(key))
        position = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans(), label="truncate"):
            del content[position:]
        else:
            content[position] ^= 1 << data.draw(st.integers(0, 7), label="bit")
        checkpoints.place.put(key, bytes(content))

        found = checkpoints.newest()
        # In the manifest, a change of white space alone changes nothing that it says.
        if found.checkpoint == sound:
            assert key.endswith("manifest.json")
            assert found.skipped == ()
        else:
            assert found.checkpoint == checkpoints.load(1)
            assert len(found.skipped) == 1


# Pruning


@settings(max_examples=60)
@given(
    complete=st.sets(st.integers(0, 9)),
    half=st.sets(st.integers(0, 9)),
    keep=st.integers(1, 4),
    protect=st.sets(st.integers(0, 9), max_size=2),
)
def test_prune_keeps_exactly_what_it_says(complete: set[int], half: set[int], keep: int, protect: set[int]) -> None:
    half = half - complete
    with fresh_checkpoints() as checkpoints:
        for epoch in complete:
            save(checkpoints, epoch)
        for epoch in half:
            leave_half_written(checkpoints, epoch)

        checkpoints.prune(keep, protect)

        best_first = sorted(complete, reverse=True)
        kept = set(best_first[:keep]) | (complete & protect)
        kept_halves = {epoch for epoch in half if not complete or epoch > max(complete) or epoch in protect}
        assert {manifest.epoch for manifest in checkpoints.manifests()} == kept
        assert epochs_stored(checkpoints) == kept | kept_halves
        for epoch in kept:
            assert checkpoints.load(epoch).files == FILES


def test_prune_counts_a_checkpoint_with_a_damaged_manifest_as_incomplete(checkpoints: Checkpoints) -> None:
    for epoch in (1, 2, 3, 4):
        save(checkpoints, epoch)
    for epoch in (2, 4):
        checkpoints.place.put(f"checkpoints/epoch-{epoch:04d}/manifest.json", b"{}")
    checkpoints.prune(keep=2)
    assert epochs_stored(checkpoints) == {1, 3, 4}


def test_prune_leaves_other_files_alone(checkpoints: Checkpoints) -> None:
    for key in ("run.json", "checkpoints/notes.txt", "checkpoints/epoch-1/model", "checkpoints/epoch-best/model"):
        checkpoints.place.put(key, b"")
    before = checkpoints.place.keys()
    for epoch in range(3):
        save(checkpoints, epoch)
    checkpoints.prune(keep=1)
    checkpoints.place.delete("checkpoints/epoch-0002")
    assert checkpoints.place.keys() == before


def test_prune_refuses_to_keep_nothing(checkpoints: Checkpoints) -> None:
    with pytest.raises(InputError, match="1 or more"):
        checkpoints.prune(keep=0)


@pytest.mark.parametrize("delete", ["prune", "save"])
def test_the_manifest_goes_before_any_other_file(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, delete: str
) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2)

    sound = type(checkpoints.place).delete

    def interrupt(place: Place, prefix: str) -> None:
        if not prefix.endswith("/manifest.json"):
            raise OSError(f"interrupted before {prefix} is removed")
        sound(place, prefix)

    monkeypatch.setattr(type(checkpoints.place), "delete", interrupt)
    with pytest.raises(OSError, match="interrupted"):
        checkpoints.prune(keep=1) if delete == "prune" else save(checkpoints, 1)
    assert [manifest.epoch for manifest in checkpoints.manifests()] == [2]
    assert epochs_stored(checkpoints) == {1, 2}


# Killed writers and concurrent readers


def test_a_save_killed_before_any_of_its_file_operations_is_whole_or_absent(
    tmp_path: Path, start_writer: StartWriter
) -> None:
    """Epoch 1 is sound; the writer dies while it saves over epoch 2, at each operation in turn."""
    for dies_at in itertools.count():
        folder = tmp_path / str(dies_at)
        checkpoints = Checkpoints(open_place(str(folder)))
        save(checkpoints, 1)
        save(checkpoints, 2)
        writer = start_writer("save-once", folder, 2, 7, dies_at)
        if writer.wait() == 0:
            break
        assert writer.returncode == -signal.SIGKILL

        found = checkpoints.newest()
        assert found.checkpoint is not None
        if found.checkpoint.manifest.epoch == 1:
            assert found.checkpoint.files == FILES
            # Once the manifest has gone and before anything is written, even the folder may be absent.
            assert len(found.skipped) == int(bool(checkpoints.place.keys("checkpoints/epoch-0002")))
        elif found.checkpoint.files != FILES:
            assert_comes_from_one_save(found.checkpoint)
        for manifest in checkpoints.manifests():
            checkpoints.load(manifest.epoch)

        save(checkpoints, 2)
        leftovers = [path for path in folder.rglob(".*") if path.is_file()]
        assert leftovers == [], "saving again takes what the killed writer left"
        assert checkpoints.newest() == Found(checkpoints.load(2), ())
    assert dies_at > 15, "a save of three files over three has more operations than that"


def test_a_writer_killed_at_random_leaves_only_checkpoints_that_verify(
    tmp_path: Path, start_writer: StartWriter
) -> None:
    checkpoints = Checkpoints(open_place(str(tmp_path)))
    first = 0
    for _ in range(10):
        writer = start_writer("save", tmp_path, first)
        time.sleep(random.uniform(0, 0.05))
        writer.kill()
        writer.wait()

        for manifest in checkpoints.manifests():
            assert_comes_from_one_save(checkpoints.load(manifest.epoch))
        found = checkpoints.newest()
        assert len(found.skipped) <= 1, "only the epoch that was being saved can be incomplete"
        assert found.checkpoint is not None
        assert_comes_from_one_save(found.checkpoint)
        assert found.checkpoint.manifest.epoch >= first, "this writer had saved its first epoch"
        first = found.checkpoint.manifest.epoch + 1


def test_a_concurrent_reader_gets_one_save_whole_or_an_error(tmp_path: Path, start_writer: StartWriter) -> None:
    start_writer("save", tmp_path, 0)
    checkpoints = Checkpoints(open_place(str(tmp_path)))
    stamps: set[float] = set()
    end = time.monotonic() + 30
    while len(stamps) < 20 and time.monotonic() < end:
        checkpoint = checkpoints.newest().checkpoint
        if checkpoint is not None:
            assert_comes_from_one_save(checkpoint)
            stamps.add(checkpoint.manifest.metrics["stamp"])
    assert len(stamps) == 20, "the writer has not gone on while it was read"
