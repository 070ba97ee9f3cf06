"""What a checkpoint holds: the classifier to use as safetensors, and all else that a resumed run needs."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import safetensors.torch
import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from distsens.errors import InputError, refusing
from distsens.models import state_to_bytes
from distsens.sensitivity import LayerSensitivity, Stabilizer
from distsens.strict_json import Document, load_as, load_json

WEIGHTS = "model.safetensors"
STATE = "state.pt"
_FIELD = "checkpoint"
_MEASURED = ("validation/robust_accuracy", "validation/clean_accuracy")


@dataclass(frozen=True)
class EpochRecord:
    """What is known after an epoch; epoch 0 is the untrained network.

    metrics : by flat name, e.g. ``validation/robust_accuracy`` or ``sensitivity/absolute/network.conv1``. Where the
        alarm of catastrophic overfitting watches, ``validation/training_attack_accuracy`` and
        ``validation/overfitting_gap``, by which it is above ``validation/robust_accuracy``.
    sensitivity : of every neuron on the validation pairs; kept for the newest record of a history only.
    alarm : the line of an alarm that the epoch raised.
    """

    epoch: int
    metrics: dict[str, float]
    sensitivity: dict[str, LayerSensitivity] = field(default_factory=dict, compare=False)
    alarm: str | None = None

    @property
    def robust_accuracy(self) -> float:
        """On validation."""
        return self.metrics["validation/robust_accuracy"]

    @property
    def selection(self) -> float:
        """What selects the best epoch: robust accuracy, unless the training has another (see ``Plan.selects``)."""
        return self.metrics.get("validation/selection", self.robust_accuracy)


def best_epoch(history: Sequence[EpochRecord]) -> EpochRecord | None:
    """Highest by ``selection``, then by clean accuracy, then the earliest; never epoch 0, so perhaps none.

    Raises
    ------
    InputError : an epoch of a checkpoint's history was not measured.
    """
    epochs = [record for record in history if record.epoch > 0]
    for record in epochs:
        if absent := [name for name in _MEASURED if name not in record.metrics]:
            raise InputError(_FIELD, STATE, f"is damaged: of epoch {record.epoch} it has no {absent[0]}")
    return max(
        epochs,
        key=lambda record: (record.selection, record.metrics["validation/clean_accuracy"], -record.epoch),
        default=None,
    )


@dataclass
class TrainingState:
    """Everything that changes while training.

    model : the classifier itself, not a DDP wrapper.
    average : exponential average of its weights, or None.
    history : a record for every epoch, from epoch 0 on.
    initial, selected : sensitivity of the untrained network, and the most sensitive neurons after the last epoch.
    """

    model: nn.Module
    optimizer: Optimizer
    average: AveragedModel | None = None
    stabilizer: Stabilizer | None = None
    history: list[EpochRecord] = field(default_factory=list)
    initial: dict[str, LayerSensitivity] = field(default_factory=dict)
    selected: dict[str, Tensor] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return max(len(self.history) - 1, 0)

    @property
    def best(self) -> EpochRecord:
        """The best epoch so far; see :func:`best_epoch`."""
        best = best_epoch(self.history)
        if best is None:
            raise ValueError("no epoch has finished")
        return best

    @property
    def classifier(self) -> nn.Module:
        """What is validated and published: the averaged weights where there are any."""
        return self.average.module if self.average is not None else self.model

    def to_files(self) -> dict[str, bytes]:
        """The state as files of a checkpoint."""
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "stabilizer": self.stabilizer.state_dict() if self.stabilizer else None,
            "selected": self.selected,
            "history": json.dumps([{"epoch": r.epoch, "metrics": r.metrics, "alarm": r.alarm} for r in self.history]),
            "sensitivity": _plain(self.history[-1].sensitivity),
            "initial": _plain(self.initial),
        }
        if self.average is not None:
            state["model"] = self.model.state_dict()
            state["averaged_steps"] = self.average.n_averaged
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return {WEIGHTS: weights_to_bytes(self.classifier), STATE: buffer.getvalue()}

    def load_files(self, files: Mapping[str, bytes]) -> None:
        """Take up the state of :meth:`to_files`, on whatever device the parts are.

        Raises
        ------
        InputError : the files hold another state, or none.
        """
        with refusing(_FIELD, STATE, "is damaged, or of another training"):
            state = _state(files)
            load_weights(self.classifier, files[WEIGHTS])
            if self.average is not None:
                self.model.load_state_dict(state["model"])
                self.average.n_averaged.copy_(state["averaged_steps"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.stabilizer is not None:
                self.stabilizer.load_state_dict(state["stabilizer"])
            self.selected = {layer: _tensor(neurons) for layer, neurons in state["selected"].items()}
            self.initial = _measured(state["initial"])
            self.history = _history(state)
            self.history[-1] = replace(self.history[-1], sensitivity=_measured(state["sensitivity"]))

    def roll_back(self, files: Mapping[str, bytes]) -> None:
        """Take up an earlier epoch of this run, all but its history: what happened since stays on record."""
        history = self.history
        self.load_files(files)
        self.history = history


def stored_history(files: Mapping[str, bytes]) -> list[EpochRecord]:
    """The epochs up to that of a checkpoint's files, without their neurons' sensitivity.

    Raises
    ------
    InputError : the files hold none, whatever their digests say.
    """
    with refusing(_FIELD, STATE, "is damaged"):
        return _history(_state(files))


def weights_to_bytes(model: nn.Module) -> bytes:
    """A model's parameters and buffers as a safetensors file."""
    return state_to_bytes(model.state_dict())


def load_weights(model: nn.Module, weights: bytes) -> None:
    """Load a safetensors file of :func:`weights_to_bytes`; every name and shape must fit."""
    model.load_state_dict(safetensors.torch.load(weights))


def _state(files: Mapping[str, bytes]) -> dict[str, Any]:
    state = torch.load(io.BytesIO(files[STATE]), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError("it holds no state of a training")
    return state


class _Record(Document):
    model_config = ConfigDict(allow_inf_nan=True)

    epoch: int = Field(ge=0)
    metrics: dict[str, float]
    alarm: str | None


class _History(Document):
    records: list[_Record] = Field(min_length=1)


def _history(state: Mapping[str, Any]) -> list[EpochRecord]:
    records = load_as(_History, {"records": load_json(state["history"], finite=False)}).records
    if any(before.epoch >= after.epoch for before, after in pairwise(records)):
        raise ValueError("its epochs do not follow one another")
    return [EpochRecord(record.epoch, record.metrics, alarm=record.alarm) for record in records]


def _plain(sensitivity: Mapping[str, LayerSensitivity]) -> dict[str, dict[str, Tensor]]:
    return {layer: {name: v.cpu() for name, v in asdict(values).items()} for layer, values in sensitivity.items()}


def _measured(plain: Mapping[str, dict[str, Tensor]]) -> dict[str, LayerSensitivity]:
    return {
        layer: LayerSensitivity(**{name: _tensor(one) for name, one in values.items()})
        for layer, values in plain.items()
    }


def _tensor(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(value).__name__} where a tensor should be")
    return value
