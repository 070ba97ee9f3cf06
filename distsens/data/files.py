"""Image files: decoded to one size, at once or only when a batch needs them."""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from distsens.data.budget import Budget
from distsens.data.pixels import to_rgb
from distsens.data.tree import Tree
from distsens.errors import InputError, UnreachableError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".tif", ".tiff", ".webp"),
)
Interpolation = Literal["bilinear", "bicubic"]
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")

_MOST_PIXELS = 2**27
"""Of an image that is read, 134 million, and of all that are decoded at a time: some 10 bytes of memory each."""
_MOST_RESIZED = 2**24
_DECODING = Budget(_MOST_PIXELS)
# Pillow warns of images beyond 89 million pixels; those that are too large are refused here, by their name.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, ImportError, Image.DecompressionBombError)
"""What Pillow raises on files that are cut short, damaged or no images, and `to_rgb` on what has no right value."""


@dataclass(frozen=True)
class Fit:
    """How images of any size become squares of one, as torchvision's ``Resize`` and ``CenterCrop`` make them.

    Attributes
    ----------
    image_size : side of the square that is cropped from the centre; None leaves the size as it is.
    resize : the shorter side is resized to it before, with antialiasing; None takes ``image_size``.
    interpolation : of the resizing.

    Raises
    ------
    InputError
        If there is no square to crop from what is resized.
    """

    image_size: int | None = None
    resize: int | None = None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.image_size is None and self.interpolation != "bilinear":
            raise InputError("data.interpolation", self.interpolation, "needs a data.image_size to resize images to")
        if self.resize is not None and (self.image_size is None or self.resize < self.image_size):
            allowed = f"must be at least data.image_size ({self.image_size}), the side of the square that is cropped"
            raise InputError("data.resize", self.resize, allowed)

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, resized and cropped."""
        if self.image_size is None:
            return image
        side = self.image_size if self.resize is None else self.resize
        shorter = min(image.size)
        width, height = (max(side, longer * side // shorter) for longer in image.size)
        left, top = round((width - self.image_size) / 2), round((height - self.image_size) / 2)
        square = left, top, left + self.image_size, top + self.image_size
        method = Image.Resampling[self.interpolation.upper()]
        if width * height > max(_MOST_RESIZED, 4 * self.image_size**2):
            return part_of_resized(image, (width, height), square, method)
        return image.resize((width, height), method).crop(square)


def part_of_resized(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int], method: Image.Resampling
) -> Image.Image:
    """What is in a box of the resized image, of which the rest is not made: of a strip, 65535x1 say, it is gigabytes.

    Pillow may begin with the other axis for it, between which it rounds and clips: some values are others by a little.
    """
    across, down = image.width / size[0], image.height / size[1]
    left, top, right, bottom = box
    within = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
    return image.resize((right - left, bottom - top), method, within)


AS_IT_IS = Fit()


def decode(content: bytes, fit: Fit = AS_IT_IS) -> npt.NDArray[np.uint8]:
    """One image as uint8 (3, H, W): red, green and blue, see `to_rgb`.

    Of an animation, or of several pages, the first counts. Orientation tags are not followed: neither does torchvision.
    However many threads decode at a time, they hold 134 million pixels together.

    Parameters
    ----------
    content : of a file in one of Pillow's common formats, whatever its suffix says of it.
    fit : how it is resized and cropped; by default it is not.

    Raises
    ------
    One of ``UNREADABLE``.
    """
    with Image.open(BytesIO(content), formats=_FORMATS) as file:
        if (pixels := file.width * file.height) > _MOST_PIXELS:
            raise ValueError(f"{file.width}x{file.height} are more than the {_MOST_PIXELS:,} pixels that are read")
        with _DECODING.taking(pixels):
            image = fit(to_rgb(file))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def image_digest(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """SHA-256 of one image's pixels, uint8 (32,)."""
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(pixels).data).digest(), np.uint8)


# Compared by digest: the generated == would compare arrays element by element.
@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images too many for the memory, indexed like a uint8 tensor (N, 3, H, W) and decoded only then.

    Attributes
    ----------
    tree : where the files are, for every machine.
    names : (N,) their names within it.
    size : (H, W) of the decoded images.
    fit : how they are resized and cropped.
    digests : uint8 array (N, 32), each image's `image_digest` when it was first read.
    """

    tree: Tree
    names: npt.NDArray[np.str_]
    size: tuple[int, int]
    fit: Fit
    digests: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, H, W)."""
        return len(self), 3, *self.size

    def __getitem__(self, samples: slice | Tensor) -> Tensor:
        """The images of these numbers, decoded in as many threads as PyTorch uses.

        Raises
        ------
        InputError
            If a file is gone or no longer holds the image that it held.
        """
        rows = np.arange(len(self))[samples if isinstance(samples, slice) else samples.cpu().numpy()]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            images = list(pool.map(self.decoded, rows))
        return torch.from_numpy(np.stack(images)) if images else torch.empty(0, *self.shape[1:], dtype=torch.uint8)

    def take(self, samples: npt.NDArray[np.int64]) -> ImageFiles:
        """The files of these numbers, in this order."""
        return ImageFiles(self.tree, self.names[samples], self.size, self.fit, self.digests[samples])

    def decoded(self, row: int) -> npt.NDArray[np.uint8]:
        """The image of this number; see `__getitem__`."""
        name = str(self.names[row])
        where = f"{self.tree.url}/{name}"
        try:
            content = self.tree.read(name)
        except OSError as problem:
            gone = isinstance(problem, FileNotFoundError)
            kind = InputError if gone else UnreachableError  # of the network or the storage, no word on the file
            raise kind("data.root", where, f"could be read when the run began ({problem})") from problem
        try:
            pixels = decode(content, self.fit)
        except UNREADABLE as problem:
            raise InputError("data.root", where, f"could be read when the run began ({problem})") from problem
        if not np.array_equal(image_digest(pixels), self.digests[row]):
            raise InputError("data.root", where, "held another image when the run began")
        return pixels


Images = Tensor | ImageFiles
"""Images in memory, or in their files; both are indexed by a slice or a tensor of numbers."""


def read_ahead(images: Images, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """``images[batch]`` of each batch in turn; from files the next batch is decoded while one is in use."""
    if isinstance(images, Tensor):
        yield from (images[batch] for batch in batches)
        return
    coming: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for batch in batches:
            coming.append(reader.submit(images.__getitem__, batch))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
