from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from distsens.data import ImageFiles, LocalTree, read_ahead
from distsens.data import files as files_module
from distsens.data.budget import Budget
from distsens.data.files import UNREADABLE, Fit, Interpolation, decode, image_digest, part_of_resized
from distsens.errors import InputError, UnreachableError

ROOT = Path(__file__).resolve().parents[2]


def _photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture, which JPEG keeps nearly as it is."""
    coarse = np.random.default_rng(seed).integers(256, size=(3, 3, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize(("suffix", "tolerance"), [("png", 0), ("bmp", 0), ("tiff", 0), ("webp", 8), ("jpg", 8)])
def test_formats_are_read(tmp_path: Path, suffix: str, tolerance: int) -> None:
    photo = _photo(20, 14)
    photo.save(tmp_path / f"a.{suffix}")
    read = decode((tmp_path / f"a.{suffix}").read_bytes())
    assert (read.dtype, read.shape, read.flags.c_contiguous) == (np.uint8, (3, 14, 20), True)
    assert np.abs(read.astype(int) - _pixels(photo)).mean() <= tolerance


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "RGB"])
def test_every_mode_becomes_red_green_and_blue(tmp_path: Path, mode: str) -> None:
    image = _photo(9, 7).convert(mode)
    image.save(tmp_path / "a.png")
    assert np.array_equal(decode((tmp_path / "a.png").read_bytes()), _pixels(image))


def test_transparency_is_dropped_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    image = _photo(9, 7).quantize(16)
    image.save(tmp_path / "palette.png", transparency=bytes(range(16)))
    assert np.array_equal(decode((tmp_path / "palette.png").read_bytes()), _pixels(image))
    colours = np.full((7, 9, 4), (200, 100, 50, 0), np.uint8)
    Image.fromarray(colours).save(tmp_path / "clear.png")
    assert (decode((tmp_path / "clear.png").read_bytes())[:, 0, 0] == (200, 100, 50)).all()
    assert not recwarn.list


def test_cmyk_and_16_bit_grey_keep_their_brightness(tmp_path: Path) -> None:
    _photo(9, 7).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(decode((tmp_path / "a.jpg").read_bytes()).astype(int) - _pixels(_photo(9, 7))).mean() < 8
    grey = np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(decode((tmp_path / "a.png").read_bytes()), np.broadcast_to(grey >> 8, (3, 7, 9)))


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    _photo(9, 7).save(tmp_path / "a.png")
    shutil.move(tmp_path / "a.png", tmp_path / "a.jpg")
    assert np.array_equal(decode((tmp_path / "a.jpg").read_bytes()), _pixels(_photo(9, 7)))


@settings(max_examples=60)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(0, 20),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_images_are_resized_and_cropped_as_torchvision_does(
    width: int, height: int, size: int, more: int, interpolation: Interpolation
) -> None:
    photo = _photo(width, height)
    file = io.BytesIO()
    photo.save(file, "png")
    resized = v2.Resize(size + more, v2.InterpolationMode(interpolation))
    expected = v2.Compose([resized, v2.CenterCrop(size)])(photo)
    fit = Fit(size, size + more if more else None, interpolation)
    assert np.array_equal(decode(file.getvalue(), fit), _pixels(expected))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (256, 256), (257, 999), (100, 3000)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_become_as_imagenets_published_figures_take_them(
    width: int, height: int, interpolation: Interpolation
) -> None:
    photo = _photo(width, height)
    expected = v2.Compose([v2.Resize(256, v2.InterpolationMode(interpolation)), v2.CenterCrop(224)])(photo)
    file = io.BytesIO()
    photo.save(file, "bmp")
    assert np.array_equal(decode(file.getvalue(), Fit(224, 256, interpolation)), _pixels(expected))


def test_what_cannot_be_cropped_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.resize: got 200; must be at least data\.image_size \(224\)"):
        Fit(224, 200)
    with pytest.raises(InputError, match=r"data\.resize: got 256; must be at least data\.image_size \(None\)"):
        Fit(None, 256)
    with pytest.raises(InputError, match=r"data\.interpolation: got 'bicubic'; needs a data\.image_size"):
        Fit(interpolation="bicubic")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp", "ppm"])
def test_a_damaged_file_is_an_image_still_or_a_known_error(tmp_path: Path, suffix: str) -> None:
    whole, path = io.BytesIO(), tmp_path / f"a.{suffix}"
    _photo(31, 23).save(whole, {"jpg": "jpeg"}.get(suffix, suffix))
    random, unreadable = np.random.default_rng(0), 0
    for _ in range(150):
        content = bytearray(whole.getvalue())
        for place in random.integers(len(content), size=3):
            content[place] = random.integers(256)
        path.write_bytes(content[: random.integers(1, 2 * len(content))])
        try:
            assert decode(path.read_bytes(), Fit(8)).shape == (3, 8, 8)
        except UNREADABLE:
            unreadable += 1
    assert unreadable > 20


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp"])
def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    _photo(64, 64).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UNREADABLE):
        decode(path.read_bytes(), Fit(8))


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    for number in range(10):
        _photo(12, 9, seed=number).save(tmp_path / f"{number}.png")
    names = np.array([f"{number}.png" for number in range(10)])
    digests = np.stack([image_digest(decode((tmp_path / name).read_bytes(), Fit(8))) for name in names])
    return ImageFiles(LocalTree(tmp_path), names, (8, 8), Fit(8), digests)


def _all(files: ImageFiles) -> torch.Tensor:
    return torch.stack([torch.from_numpy(decode(files.tree.read(str(name)), Fit(8))) for name in files.names])


def test_files_are_indexed_like_a_tensor(files: ImageFiles) -> None:
    images = _all(files)
    assert (len(files), files.shape) == (10, images.shape)
    for samples in (slice(2, 7), slice(None), slice(3, 3), torch.tensor([4, 1, 1]), torch.arange(10) % 3 == 0):
        assert torch.equal(files[samples], images[samples])
    taken = files.take(np.array([5, 0, 9]))
    assert torch.equal(taken[1:], images[[0, 9]])
    assert taken[torch.tensor([], dtype=torch.int64)].shape == (0, 3, 8, 8)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_reading_ahead_gives_the_batches_in_turn(files: ImageFiles, count: int) -> None:
    images = _all(files)
    batches = [torch.tensor([number, 9 - number]) for number in range(count)]
    expected = [images[batch] for batch in batches]
    for source in (files, images):
        found = list(read_ahead(source, batches))
        assert len(found) == count
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


class Watched:
    """Images that note which batches were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.second = threading.Event()

    def __getitem__(self, batch: torch.Tensor) -> torch.Tensor:
        self.asked.append(int(batch))
        if int(batch) == 1:
            self.second.set()
        return batch


def test_the_next_batch_is_read_while_one_is_in_use_and_no_more() -> None:
    images = Watched()
    batches = read_ahead(images, [torch.tensor([number]) for number in range(4)])  # type: ignore[arg-type]
    assert int(next(batches)) == 0
    assert images.second.wait(10)
    assert images.asked == [0, 1]
    assert int(next(batches)) == 1


def test_a_file_that_the_storage_does_not_give_is_no_worse_at_another_moment(files: ImageFiles) -> None:
    path = Path(files.tree.url) / "3.png"
    kept = path.rename(path.with_suffix(".kept"))
    path.symlink_to(path)
    with pytest.raises(UnreachableError, match=r"data\.root: got '.*/3\.png'; could be read .*Too many levels"):
        files[3:4]
    kept.replace(path)
    files[3:4]


def test_a_file_that_is_gone_or_changed_stops_with_its_name(files: ImageFiles) -> None:
    (Path(files.tree.url) / "3.png").unlink()
    _photo(12, 9, seed=77).save(Path(files.tree.url) / "4.png")
    (Path(files.tree.url) / "5.png").write_bytes(b"no image")
    for number, says in ((3, "could be read when the run began"), (4, "held another image"), (5, "could be read")):
        with pytest.raises(InputError, match=rf"data\.root: got '.*/{number}\.png'; {says}"):
            files[number : number + 1]
        with pytest.raises(InputError, match=says):
            list(read_ahead(files, [torch.tensor([0]), torch.tensor([number])]))


@pytest.mark.parametrize(("width", "height"), [(65535, 1), (1, 65535), (65535, 2)])
def test_of_a_strip_only_what_is_cropped_is_made(width: int, height: int) -> None:
    content = io.BytesIO()
    pixels = np.zeros((height, width, 3), np.uint8)
    middle = (
        (slice(None), slice(width // 2 - 4, width // 2 + 4))
        if width > height
        else (slice(height // 2 - 4, height // 2 + 4), slice(None))
    )
    pixels[middle] = (10, 20, 30)
    Image.fromarray(pixels).save(content, "PNG")
    found = decode(content.getvalue(), Fit(224))
    assert found.shape == (3, 224, 224)
    assert [set(channel.ravel().tolist()) for channel in found] == [{10}, {20}, {30}]


# Decodes a strip with no more than a gigabyte beyond what it has taken so far.
STRIP = """
import io
import resource
from pathlib import Path

from PIL import Image

from distsens.data.files import Fit, decode

content = io.BytesIO()
Image.new("RGB", (65535, 1)).save(content, "PNG")
decode(content.getvalue(), Fit(8))
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, resource.RLIM_INFINITY))
print(decode(content.getvalue(), Fit(224)).shape)
"""


def test_a_strip_takes_no_gigabytes() -> None:
    done = subprocess.run([sys.executable, "-c", STRIP], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("(3, 224, 224)\n", 0), done.stderr


@given(st.integers(1, 5000), st.integers(1, 40), st.booleans(), st.sampled_from(get_args(Interpolation)))
@settings(max_examples=30, deadline=None)
def test_what_is_cropped_first_is_what_torchvision_crops_last(
    longer: int, shorter: int, upright: bool, interpolation: Interpolation
) -> None:
    size = (shorter, longer) if upright else (longer, shorter)
    photo = _photo(*size)
    resized = v2.Resize(32, v2.InterpolationMode(interpolation))
    expected = np.asarray(v2.Compose([resized, v2.CenterCrop(32)])(photo)).astype(int)
    assert np.array_equal(np.asarray(Fit(32, None, interpolation)(photo)), expected)
    width, height = (max(32, side * 32 // min(size)) for side in size)
    left, top = round((width - 32) / 2), round((height - 32) / 2)
    method = Image.Resampling[interpolation.upper()]
    part = part_of_resized(photo, (width, height), (left, top, left + 32, top + 32), method)
    other = abs(np.asarray(part).astype(int) - expected)
    assert other.mean() < 0.5
    assert other.max() <= 8


def test_images_that_are_too_large_are_named_with_their_size_and_not_decoded() -> None:
    content = io.BytesIO()
    Image.new("1", (14_000, 10_000)).save(content, "PNG")
    with pytest.raises(UNREADABLE, match=r"^14000x10000 are more than the 134,217,728 pixels that are read$"):
        decode(content.getvalue())


def test_a_pipe_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(OSError, match=r"it is no file, but a pipe"):
        LocalTree(tmp_path).read("x.png")


def test_readers_share_the_memory_of_what_they_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    class Counted(Budget):
        def taking(self, wanted: int) -> AbstractContextManager[None]:
            taken.append(wanted)
            return super().taking(wanted)

    monkeypatch.setattr(files_module, "_DECODING", Counted(1))
    content = io.BytesIO()
    _photo(20, 14).save(content, "PNG")
    decode(content.getvalue())
    assert taken == [20 * 14]
