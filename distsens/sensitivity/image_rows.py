"""Which rows of a layer's output belong to which image, in the forward at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from distsens.errors import InputError
from distsens.sensitivity.survey import Survey, known_survey


def images_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The images that a network is called with: the first tensor of its arguments."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim > 0:
            return value
    kinds = ", ".join(type(value).__name__ for value in (*args, *kwargs.values()))
    raise InputError("images", kinds or "nothing", "a model whose layers are read is called with a batch of images")


class ImageRows:
    """Tells the rows of each image apart in the outputs of some layers, see :func:`survey`."""

    def __init__(self) -> None:
        self._images: int | None = None
        self._survey: Survey | None = None

    def forget(self) -> None:
        """No forward is at hand."""
        self._images = self._survey = None

    def begin(self, network: nn.Module, images: Tensor, layers: Sequence[str]) -> None:
        """A forward of these images begins, and these layers will be read; an error names one that cannot be."""
        self._survey = known_survey(network, images, layers)
        self._images = len(images)
        for name in layers:
            if name in self._survey.faults:
                raise InputError("layers", name, self._survey.faults[name])

    def of(self, name: str, output: Tensor) -> int:
        """How many rows of a layer's output belong to each image, one image's after another's."""
        if self._survey is None or self._images is None:
            raise InputError("layers", name, "it was called outside of a forward of the model: its images are unknown")
        if name not in self._survey.rows:
            raise InputError("layers", name, "it is not called in eval mode, where its output's images are looked for")
        rows = self._survey.rows[name]
        if output.ndim < 2 or len(output) != rows * self._images:
            allowed = f"its output has shape {tuple(output.shape)} for {self._images} images, not {rows} rows for each"
            raise InputError("layers", name, allowed)
        return rows
