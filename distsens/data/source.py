"""Where the files of a data set are, and how they are to be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distsens.data.files import Fit, Interpolation
from distsens.data.tree import LocalTree, Tree
from distsens.errors import InputError


@dataclass(frozen=True)
class Source:
    """What a reader is told; it takes what concerns it.

    Attributes
    ----------
    root : the folder that holds the files (for ``npz`` the file), or for a ``folder`` another tree, such as a bucket;
        None for a data set that needs none.
    download : whether missing files may be fetched into ``root``.
    image_size : side in pixels to which the images of a folder are resized and cropped; None leaves them as they are.
    test_fraction : the share of a folder or file without a test split that becomes the test split, inside (0, 1).
    memory : GiB; the images of a folder that would take more stay in their files and are decoded batch by batch.
    tell : is given a line on how far the reading has come, now and then.
    judged : the data is judged and not trained on: what has no test split is one itself, whole.
    classes : how many there are in an ``npz`` without training images; None for the highest label and one.
    resize, interpolation : see `Fit`.
    without_training : the training images of a folder that has other splits, too, are not wanted, and not read.
    """

    root: Path | Tree | None
    download: bool = False
    image_size: int | None = None
    test_fraction: float = 0.2
    memory: float = 4.0
    tell: Callable[[str], None] = lambda _: None
    judged: bool = False
    classes: int | None = None
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    without_training: bool = False

    @property
    def fit(self) -> Fit:
        """How images become of one size; `InputError` where they cannot."""
        return Fit(self.image_size, self.resize, self.interpolation)

    def required_root(self, holds: str) -> Path:
        """The root, which must be given; ``holds`` says what is to be in it."""
        if self.root is None:
            raise InputError("data.root", None, f"must be {holds}")
        if not isinstance(self.root, Path):
            raise InputError("data.root", self.root.url, f"must be {holds}, on a disk; data.name folder reads buckets")
        return self.root

    def required_tree(self, holds: str) -> Tree:
        """The root as a tree, which must be given."""
        if self.root is None or isinstance(self.root, Path):
            return LocalTree(self.required_root(holds).absolute())
        return self.root
