"""Every mode of Pillow has one right value in 8 bits, or is refused; so has every file that such a mode comes from."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distsens.data.files import UNREADABLE, decode
from distsens.data.pixels import to_rgb

GREY = np.array([[0, 1, 127, 128], [200, 254, 255, 16]], np.uint8)
COLOURS = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)
ALPHA = np.array([[255, 255, 200, 128], [255, 90, 255, 255]], np.uint8)


def grey(values: np.ndarray = GREY) -> np.ndarray:
    """Values (H, W) as red, green and blue."""
    return np.repeat(values[:, :, None], 3, axis=2)


def palette_image(mode: str, transparency: bytes | None = None) -> Image.Image:
    image = Image.fromarray(GREY % 4).copy()
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([9, 8, 7, 255, 0, 10, 3, 250, 77, 1, 2, 3])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image if mode == "P" else image.convert(mode)


PALETTE = np.array([[9, 8, 7], [255, 0, 10], [3, 250, 77], [1, 2, 3]], np.uint8)[GREY % 4]


def with_alpha(mode: str) -> Image.Image:
    base = Image.fromarray(GREY if mode == "LA" else COLOURS)
    base.putalpha(Image.fromarray(ALPHA))
    return base


MODES: dict[str, tuple[Image.Image, np.ndarray]] = {
    "1": (Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE), grey(np.where(GREY >= 128, 255, 0))),
    "L": (Image.fromarray(GREY), grey()),
    "LA": (with_alpha("LA"), grey()),
    "La": (with_alpha("LA").convert("La"), grey()),
    "P": (palette_image("P"), PALETTE),
    "P with one transparent colour": (palette_image("P", bytes([0, 255, 255, 255])), PALETTE),
    "PA": (palette_image("PA"), PALETTE),
    "RGB": (Image.fromarray(COLOURS), COLOURS),
    "RGBA": (with_alpha("RGBA"), COLOURS),
    "RGBa": (with_alpha("RGBA").convert("RGBa"), COLOURS),
    "RGBX": (Image.fromarray(COLOURS).convert("RGBX"), COLOURS),
    "CMYK": (Image.fromarray(COLOURS).convert("CMYK"), COLOURS),
    "YCbCr": (Image.fromarray(COLOURS).convert("YCbCr"), COLOURS),
    "HSV": (Image.fromarray(COLOURS).convert("HSV"), COLOURS),
    "LAB": (Image.fromarray(COLOURS).convert("LAB"), COLOURS),
    "I;16": (Image.fromarray(GREY.astype(np.uint16) << 8), grey()),
    "I;16L": (Image.frombytes("I;16L", (4, 2), (GREY.astype("<u2") * 257).tobytes()), grey()),
    "I;16B": (Image.frombytes("I;16B", (4, 2), (GREY.astype(">u2") * 257).tobytes()), grey()),
    "I;16N": (Image.frombytes("I;16N", (4, 2), (GREY.astype("=u2") << 8).tobytes()), grey()),
}
# Modes that hold colours in another way are rounded on the way there and back.
ROUNDED = {"La": 1, "RGBa": 2, "YCbCr": 3, "HSV": 5, "LAB": 14}


@pytest.mark.parametrize("name", MODES)
def test_a_mode_becomes_what_it_shows(name: str) -> None:
    image, expected = MODES[name]
    assert image.mode == name.partition(" ")[0]
    found = to_rgb(image)
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found).astype(int) - expected).max() <= ROUNDED.get(name, 0)


def test_all_modes_are_in_the_table() -> None:
    assert {name.partition(" ")[0] for name in MODES} | {"I", "F"} == set(Image.MODES)


@pytest.mark.parametrize(("mode", "says"), [("I", "it holds 32-bit numbers"), ("F", "it holds floating-point values")])
def test_numbers_that_do_not_say_what_white_is_are_refused(mode: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        to_rgb(Image.new(mode, (2, 2), 200))


def png(values: np.ndarray, bits: int, colour: int) -> bytes:
    """A PNG of values (H, W * channels), 16 bits of which Pillow cannot write."""
    depth = {8: ">u1", 16: ">u2"}[bits]
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    rows = b"".join(b"\0" + row.astype(depth).tobytes() for row in values)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", values.shape[1] // channels, len(values), bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray | bytes, bits: int, *, kind: int = 1, photometric: int = 1, end: str = "<") -> bytes:
    """An uncompressed grey TIFF of 4 by 2 pixels: what Pillow does not write, or not in this order of bytes."""
    data = pixels if isinstance(pixels, bytes) else pixels.tobytes()
    tags = {256: 4, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 2, 279: len(data), 339: kind}
    content = {"<": b"II*\0", ">": b"MM\0*"}[end] + struct.pack(f"{end}I", 8 + len(data)) + data
    content += struct.pack(f"{end}H", len(tags))
    for tag, value in tags.items():
        content += struct.pack(f"{end}HHII", tag, 4, 1, value)
    return content + struct.pack(f"{end}I", 0)


def saved(image: Image.Image, suffix: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def packed_12_bits(values: np.ndarray) -> bytes:
    pairs = values.reshape(-1, 2).astype(int)
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)


WIDE = GREY.astype(np.uint16) * 257
PGM = b"P5\n4 2\n%d\n"
FILES: dict[str, tuple[bytes, np.ndarray]] = {
    "PNG, 1 bit": (saved(MODES["1"][0], "png"), MODES["1"][1]),
    "PNG, 16-bit grey": (png(WIDE, 16, 0), grey()),
    "PNG, 16-bit grey that was shifted": (png(GREY.astype(int) << 8, 16, 0), grey()),
    "PNG, 16-bit grey and alpha": (png(np.stack([WIDE, WIDE[::-1]], 2).reshape(2, 8), 16, 4), grey()),
    "PNG, 16-bit colours": (png(COLOURS.reshape(2, 12).astype(int) * 257, 16, 2), COLOURS),
    "PNG, 16-bit colours and alpha": (
        png(np.dstack([COLOURS, ALPHA]).reshape(2, 16).astype(int) * 257, 16, 6),
        COLOURS,
    ),
    "PNG, palette with transparency": (saved(palette_image("P"), "png", transparency=b"\0\1\2\3"), PALETTE),
    "GIF": (saved(palette_image("P"), "gif"), PALETTE),
    "PBM": (b"P4\n4 2\n" + bytes([0b11100000, 0b00010000]), grey(np.array([[0, 0, 0, 255], [255, 255, 255, 0]]))),
    "PGM, 16 bits": (PGM % 65535 + WIDE.astype(">u2").tobytes(), grey()),
    "PGM, 12 bits": (PGM % 4095 + (GREY.astype(">u2") << 4 | GREY >> 4).astype(">u2").tobytes(), grey()),
    "PGM, 16 bits in words": (b"P2\n4 2\n65535\n" + b" ".join(b"%d" % value for value in WIDE.flat), grey()),
    "PPM, 16 bits": (b"P6\n4 2\n65535\n" + (COLOURS.astype(">u2") * 257).tobytes(), COLOURS),
    "TIFF, 16 bits": (tiff(WIDE.astype("<u2"), 16), grey()),
    "TIFF, 16 bits, big end first": (tiff(WIDE.astype(">u2"), 16, end=">"), grey()),
    "TIFF, 16 bits, white is zero": (tiff((65535 - WIDE).astype("<u2"), 16, photometric=0), grey()),
    "TIFF, 8 bits, white is zero": (tiff(255 - GREY, 8, photometric=0), grey()),
    "TIFF, 12 bits": (tiff(packed_12_bits(GREY.astype(int) << 4 | GREY >> 4), 12), grey()),
    "TIFF, CMYK": (saved(MODES["CMYK"][0], "tiff"), COLOURS),
    "TIFF, palette and alpha": (saved(palette_image("PA"), "tiff"), PALETTE),
    "TIFF, grey and alpha": (saved(with_alpha("LA"), "tiff"), grey()),
    "BMP, palette": (saved(palette_image("P"), "bmp"), PALETTE),
    "WEBP with transparency": (saved(with_alpha("RGBA"), "webp", lossless=True, exact=True), COLOURS),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_becomes_what_it_shows(name: str) -> None:
    content, expected = FILES[name]
    assert np.array_equal(decode(content), expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tiff(GREY.astype("<i4"), 32, kind=2), "32-bit numbers"),
        (tiff(GREY.astype("<u4"), 32), "32-bit numbers"),
        (tiff(GREY.astype(">i4"), 32, kind=2, end=">"), "32-bit numbers"),
        (tiff(GREY.astype("<i2"), 16, kind=2), "32-bit numbers"),
        (tiff(GREY.astype("i1"), 8, kind=2), "signed values"),
        (tiff((GREY / 255).astype("<f4"), 32, kind=3), "floating-point values"),
        (saved(Image.fromarray(GREY.astype(np.float32)), "ppm"), "floating-point values"),
        (saved(Image.fromarray(GREY.astype(np.int32)), "tiff"), "32-bit numbers"),
    ],
)
def test_a_file_whose_numbers_do_not_say_what_white_is_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(UNREADABLE, match=says):
        decode(content)


def test_of_an_animation_the_first_frame_counts_and_orientation_is_not_followed() -> None:
    frames = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    moving = saved(frames[0], "webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(decode(moving), COLOURS.transpose(2, 0, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(saved(Image.fromarray(COLOURS), "png", exif=exif)).shape == (3, 2, 4)
