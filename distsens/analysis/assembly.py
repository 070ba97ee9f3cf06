"""An analysis turned into its parts: the attacks, the layers, the saved pairs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from distsens.analysis.description import Analysis
from distsens.analysis.measurement import MeasurementPlan
from distsens.attacks import AttackName, GradientAttack, Norm, Threat, attack_named
from distsens.data import ImageSet
from distsens.errors import InputError, renamed
from distsens.evaluation import inside
from distsens.examination import JudgedData
from distsens.experiment import validate
from distsens.sensitivity import match_layers
from distsens.storage import Place, open_place
from distsens.strict_json import Document, load_as
from distsens.strict_npz import load_npz

_TAKE_STEPS = ("pgd", "cw_pgd", "bim", "mim")
_SHARD = re.compile(r"(?:.*/)?pairs-\d+\.npz")
_ABOUT = "pairs.json"
_OF_DATA = ("name", "split", "root", "image_size", "classes")
_FIELDS = ("images", "adversarial", "labels", "image")


def build_conditions(analysis: Analysis, threat: Threat) -> dict[str, GradientAttack]:
    """The attacks by name: those of the analysis, then the first at each further radius; none for saved pairs."""
    if analysis.pairs is not None:
        return {}
    conditions: dict[str, GradientAttack] = {name: _attack(analysis, name, threat) for name in analysis.attacks}
    first = analysis.attacks[0]
    for eps in analysis.eps:
        conditions[f"{first} eps {eps:.4g}"] = _attack(analysis, first, Threat(threat.norm, eps))
    return conditions


def _attack(analysis: Analysis, name: AttackName, threat: Threat) -> GradientAttack:
    several = name in _TAKE_STEPS
    return attack_named(
        name,
        threat,
        steps=analysis.pgd.steps if several else 1,
        step_size=analysis.pgd.step_size if several and threat.eps == analysis.threat.eps else None,
        restarts=analysis.pgd.restarts,
    )


def build_plan(analysis: Analysis, threat: Threat, layers: Sequence[str], classes: int) -> MeasurementPlan:
    """What is measured of one model, in layers of these names."""
    return MeasurementPlan(
        build_conditions(analysis, threat),
        threat.norm,
        tuple(layers),
        classes if classes <= analysis.by_class else 0,
        analysis.seed,
        analysis.batch_size,
        analysis.gallery.images,
    )


def intervened_layers(
    analysis: Analysis, model: nn.Module, measured: Sequence[str], example: Tensor
) -> tuple[str, ...]:
    """The measured layers that are intervened on; ``example`` is images (N, C, H, W) of the model."""
    try:
        wanted = set(match_layers(model, analysis.ablation.layers, example))
    except InputError as error:
        raise InputError("ablation.layers", error.value, error.allowed) from None
    if not wanted & set(measured):
        raise InputError("ablation.layers", list(analysis.ablation.layers), f"measured are {', '.join(measured)}")
    return tuple(layer for layer in measured if layer in wanted)


@dataclass(frozen=True, eq=False)
class SavedPairs:
    """Pairs of an evaluation, in the order of their images.

    numbers : (N,) of the images in the whole split, ascending. rows : (N,) of them in what is analysed of it.
    adversarial : (N, C, H, W).
    """

    numbers: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    adversarial: npt.NDArray[np.float32]


@dataclass(frozen=True)
class PairsFolder:
    """Where the pairs of one evaluation are that ``jobs/evaluate.py --save-examples`` wrote, and what they are of.

    threat, model_sha256 : the ball that they lie in, and the model that they fool; None where an earlier version did
        not store them.
    data : name, split and, where they were said, place and size of the images that they are of, as fields of
        `JudgedData`.
    evaluation : name of the one that made them, which each of their files carries; None as before.
    """

    address: str
    place: Place
    keys: tuple[str, ...]
    threat: Threat | None
    model_sha256: str | None
    data: dict[str, Any] = field(default_factory=dict)
    evaluation: str | None = None


class _SaidThreat(Document):
    norm: Norm
    eps: float = Field(gt=0)


class _SaidModel(Document):
    sha256: str


class _About(Document):
    """What ``pairs.json`` says."""

    threat: _SaidThreat
    model: _SaidModel
    data: dict[str, Any] = Field(default_factory=dict)
    evaluation: str | None = None

    @field_validator("data")
    @classmethod
    def _ours(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name in _OF_DATA}


def find_pairs(address: str) -> PairsFolder:
    """The pairs of the one evaluation that are at an address, or below."""
    try:
        with renamed({"storage.path": "pairs"}):
            place = open_place(address)
        keys = [key for key in place.keys("") if _SHARD.fullmatch(key)]
    except OSError as error:
        raise InputError("pairs", address, f"cannot be read: {' '.join(str(error).split())}") from None
    if not keys:
        raise InputError("pairs", address, "no pairs-*.npz, which jobs/evaluate.py --save-examples writes, are there")
    folders = sorted({key.rpartition("/")[0] for key in keys})
    if len(folders) > 1:
        raise InputError("pairs", address, f"pairs of several evaluations are there; name one of {', '.join(folders)}")
    about = f"{folders[0]}/{_ABOUT}".lstrip("/")
    if not place.keys(about):
        return PairsFolder(address, place, tuple(keys), None, None)
    try:
        said = load_as(_About, place.get(about))
        validate(JudgedData, said.data)
        threat = Threat(said.threat.norm, said.threat.eps)
        return PairsFolder(address, place, tuple(keys), threat, said.model.sha256, said.data, said.evaluation)
    except (OSError, ValueError):
        raise InputError("pairs", address, f"its {_ABOUT} is damaged") from None


def read_pairs(
    folder: PairsFolder, split: ImageSet, model_sha256: str, known: npt.NDArray[np.int64] | None = None
) -> SavedPairs:
    """The pairs themselves, checked against the images that they are of and the model that they fool.

    ``known``, ascending, are the numbers of the split's images within the whole split; by default it is the beginning.
    """
    known = np.arange(len(split)) if known is None else known
    address, place, keys = folder.address, folder.place, folder.keys
    if folder.model_sha256 not in (None, model_sha256):
        raise InputError("pairs", address, "they were made to fool another model")
    parts: list[dict[str, npt.NDArray[np.generic]]] = []
    for key in keys:
        try:
            parts.append(_checked(load_npz(place.get(key)), folder))
        except (OSError, ValueError) as error:
            raise InputError("pairs", f"{address}/{key}", f"cannot be read: {error}") from None
    numbers = np.concatenate([part["image"] for part in parts]).astype(np.int64)
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    if len(np.unique(numbers)) != len(numbers):
        raise InputError("pairs", address, "some images are there twice; give the pairs of one evaluation")
    analysed = np.isin(numbers, known)
    numbers, inside = numbers[analysed], order[analysed]
    if len(numbers) == 0:
        raise InputError("pairs", address, f"none is of the {len(split)} images that are analysed")
    images = np.concatenate([part["images"] for part in parts])[inside]
    rows = np.searchsorted(known, numbers)
    stored_before = split.take(rows).tensors()[0][slice(None)].numpy()
    if images.shape != stored_before.shape or not np.array_equal(images, stored_before):
        raise InputError("pairs", address, "their images are not those of the data set's split")
    adversarial = np.concatenate([part["adversarial"] for part in parts])[inside].astype(np.float32)
    return SavedPairs(numbers, rows, adversarial)


def _checked(part: dict[str, npt.NDArray[Any]], folder: PairsFolder) -> dict[str, npt.NDArray[Any]]:
    """The arrays of one file, if they are pairs, and of the evaluation that its folder is of; else `ValueError`."""
    if absent := [name for name in _FIELDS if name not in part]:
        raise ValueError(f"it holds no {absent[0]}")
    if folder.evaluation is not None and (maker := str(part.get("evaluation"))) != folder.evaluation:
        raise ValueError(f"it is of another evaluation than its folder: {maker[:80]}")
    images, twins, labels, numbers = (part[name] for name in _FIELDS)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {images.shape}, and must be uint8 (N, C, H, W)")
    if twins.dtype.kind != "f" or twins.shape != images.shape:
        raise ValueError(f"adversarial is {twins.dtype} {twins.shape}, and must be numbers {images.shape}")
    for name, of in (("labels", labels), ("image", numbers)):
        if of.dtype.kind not in "iu" or of.shape != images.shape[:1]:
            raise ValueError(f"{name} is {of.dtype} {of.shape}, and must be whole numbers {images.shape[:1]}")
    # Of an earlier version's pairs nobody knows the ball; any two images lie in this one.
    threat = Threat("linf", 1.0) if folder.threat is None else folder.threat
    pixels = torch.from_numpy(images).float() / 255.0
    with np.errstate(over="ignore"):
        within = inside(threat, torch.from_numpy(twins.astype(np.float32)), pixels).numpy()
    if not within.all():
        first = int(numbers[np.flatnonzero(~within)[0]])
        ball = "" if folder.threat is None else f" or no more than {threat.eps:g} from it in {threat.norm}"
        raise ValueError(f"what was made of image {first} is not in [0, 1]{ball}")
    return {name: part[name] for name in _FIELDS}
