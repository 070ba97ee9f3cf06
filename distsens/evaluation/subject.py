"""A classifier to be judged, whoever trained it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from distsens import models
from distsens.errors import InputError
from distsens.experiment import Experiment
from distsens.models import PixelModel
from distsens.networks import laid_out

_OPTIONS = {
    "model.name": "factory",
    "model.mean": "mean",
    "model.std": "std",
    "model.small_images": "small_images",
    "model.weights": "model",
}


@dataclass(frozen=True)
class Architecture:
    """The network: a name of the catalogue or ``package.module:factory``, and what is around it.

    The fields are arguments of :func:`distsens.models.build`.
    """

    name: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    small_images: bool = False


@dataclass(frozen=True)
class Subject:
    """Everything that builds one classifier anywhere, small enough to travel; :func:`find_subject` makes it.

    Parameters
    ----------
    name : what to call it.
    address : where it was found, as it was given.
    architecture : the network that takes the weights.
    weights : a safetensors file of the state of a `PixelModel` or of the network inside.
    experiment : that it was trained by, if it is of a run of this project.
    run : name of that run.
    epoch : of the training that the weights are of, if known.
    mlflow_run_id : id of the run in MLflow, if known.
    notices : what can work and yet deserves a word.
    """

    name: str
    address: str
    architecture: Architecture
    weights: bytes = field(repr=False)
    experiment: Experiment | None = field(default=None, repr=False)
    run: str | None = None
    epoch: int | None = None
    mlflow_run_id: str | None = None
    notices: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256 (hexadecimal) of the weights as a safetensors file."""
        return hashlib.sha256(self.weights).hexdigest()

    def build(self, shape: tuple[int, int, int], classes: int) -> PixelModel:
        """The classifier on the CPU, in eval mode, with its weights.

        They lie as they run fastest.

        Parameters
        ----------
        shape : (C, H, W) of one image.
        classes : number of logits.

        Raises
        ------
        InputError
            The architecture leads to no network, the network takes no such images or returns other logits, or the
            weights do not fit it; which of them are missing, unexpected or of another shape is in the message.
        """
        wanted = self.architecture
        try:
            model = models.build(
                wanted.name,
                shape=shape,
                classes=classes,
                mean=wanted.mean,
                std=wanted.std,
                seed=0,
                small_images=wanted.small_images,
            )
            models.load_state(model, models.state_of(self.weights, self.address), self.address)
        except InputError as error:
            raise InputError(_OPTIONS.get(error.field, error.field), error.value, error.allowed) from error
        return laid_out(model.eval(), shape)
