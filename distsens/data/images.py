"""What is trained on: images and labels, as arrays that workers can share, or image files that they all can read."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distsens.data.files import ImageFiles, Images, image_digest
from distsens.errors import InputError


# Compared by digest: the generated == would compare arrays element by element.
@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels. The arrays may be read-only and shared between processes: never write into them.

    Attributes
    ----------
    images : uint8 array (N, C, H, W), pixel values 0..255; or files that are decoded to it batch by batch.
    labels : int64 array (N,), numbers of the classes.

    Raises
    ------
    InputError
        If a shape or a type is another one, or there are not as many labels as images.
    """

    images: npt.NDArray[np.uint8] | ImageFiles
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if isinstance(self.images, np.ndarray) and (self.images.dtype != np.uint8 or self.images.ndim != 4):
            raise InputError("images", _describe(self.images), "must be uint8 of shape (N, C, H, W)")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise InputError("labels", _describe(self.labels), f"must be int64 of shape ({len(self.images)},)")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, samples: npt.NDArray[np.int64]) -> ImageSet:
        """The samples of these numbers, in this order; arrays are copied."""
        images = self.images.take(samples) if isinstance(self.images, ImageFiles) else self.images[samples]
        return ImageSet(images, self.labels[samples])

    def tensors(self) -> tuple[Images, Tensor]:
        """Images and labels as a training takes them; they share the arrays' memory."""
        images = self.images if isinstance(self.images, ImageFiles) else as_tensor(self.images)
        return images, as_tensor(self.labels)

    def digest(self) -> str:
        """SHA-256 over shape, images and labels: equal exactly for the same samples in the same order.

        It goes by the images' own digests, so that files need not be decoded again for it.
        """
        content = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        if isinstance(self.images, ImageFiles):
            content.update(np.ascontiguousarray(self.images.digests).data)
        else:
            for image in self.images:
                content.update(image_digest(image).data)
        content.update(np.ascontiguousarray(self.labels, dtype="<i8").data)  # the same bytes on every machine
        return content.hexdigest()


class Published(NamedTuple):
    """A data set as its authors published it, before anything is held out; None stands for a split that it has not."""

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet | None
    validation: ImageSet | None = None
    left_out: tuple[str, ...] = ()
    """Files that should belong to it but cannot be read, and why."""
    notices: tuple[str, ...] = ()
    """What else was found there and is not used."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in its three splits: those that are given, and what is held out of the training images for the others.

    Attributes
    ----------
    extra : how many of the training images, the last ones, are extra: not the data set's own.
    own_validation : whether the validation split is the data's own, and not held out.
    left_out : files that should belong to it but cannot be read, and why.
    notices : what was found beside it and is not used, and which splits were held out where others were given.

    Raises
    ------
    InputError
        If the splits' images differ in shape, or a label is not the number of a class.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    extra: int = 0
    own_validation: bool = False
    left_out: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split in (self.train, self.validation, self.test):
            if split.shape != self.shape:
                raise InputError("images", split.shape, f"every split must have images of shape {self.shape}")
            unknown = split.labels[(split.labels < 0) | (split.labels >= len(self.classes))]
            if unknown.size:
                raise InputError("labels", int(unknown[0]), f"must be 0 to {len(self.classes) - 1}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.train.shape

    def digest(self) -> str:
        """SHA-256 over the digests of the three splits: the content, whatever its name."""
        splits = (self.train, self.validation, self.test)
        return hashlib.sha256(" ".join(split.digest() for split in splits).encode()).hexdigest()


def as_tensor(array: npt.NDArray[np.generic]) -> Tensor:
    """A tensor that shares the array's memory, read-only arrays included: never write into it."""
    with warnings.catch_warnings():
        # PyTorch has no read-only tensors and warns that a write would be undefined; this project does not write.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)


def _describe(array: npt.NDArray[np.generic]) -> str:
    return f"{array.dtype} {array.shape}"
