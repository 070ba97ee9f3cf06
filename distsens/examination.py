"""One examination: everything that decides how a trained classifier is judged, typed, frozen and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from distsens.experiment import (
    Address,
    BatchSize,
    Count,
    Experiment,
    FilePath,
    Images,
    Interpolation,
    Mean,
    Pixels,
    Radius,
    Section,
    Std,
    StoragePlace,
    Tracking,
    Workers,
    merge,
    validate,
)

# A number for each channel, or one for all.
_per_channel = BeforeValidator(lambda given: given if isinstance(given, list | tuple) else (given,))


SplitName = Literal["test", "validation", "train"]


class JudgedModel(Section):
    """The classifier; fields left out are those of the run that trained it, where that is ours."""

    address: Address = Field(
        "",
        description="A run, checkpoint or published model (a folder or s3://), runs:/..., models:/..., or a file of "
        "weights, perhaps with its own factory: net.pt@my_models:net.",
    )
    factory: str | None = Field(
        None,
        description="Files of weights: the catalogue name or package.module:function of those that name none behind @.",
    )
    small_images: bool = Field(False, description="File of weights of a torchvision model with the small-image stem.")
    mean: Annotated[tuple[Mean, ...], _per_channel] | None = Field(
        None, description="File of weights: subtracted from each channel."
    )
    std: Annotated[tuple[Std, ...], _per_channel] | None = Field(
        None, description="File of weights: each channel is divided by it."
    )


class JudgedData(Section):
    """What it is judged on; fields left out are those of the training."""

    name: str | None = Field(None, description="Data set of the catalogue, folder or npz.")
    root: Address | None = Field(None, description="Folder of the data sets, or the folder (or s3://) or npz itself.")
    download: bool = Field(False, description="Download the data set into the folder if it is not there.")
    classes: Count | None = Field(
        None, ge=2, le=10**6, description="npz of images and labels: default the highest label and one."
    )
    split: SplitName = Field("test", description="Split of the data set; of one without test: validation.")
    limit: Images | None = Field(None, ge=1, description="So many images of the split only.")
    choice: Literal["stratified", "first"] = Field(
        "stratified",
        description="Which ones: stratified, in which every class has its share, the same for every model and seed; or "
        "the first, as published figures of CIFAR-10 and the like are made.",
    )
    images: tuple[Annotated[Images, Field(ge=0)], ...] = Field(
        (), description="Of these, those in these places only, from 0 on."
    )
    image_size: Pixels | None = Field(None, ge=1, description="folder: resize and crop images to squares of this side.")
    resize: Pixels | None = Field(
        None, ge=1, description="folder: side to which the shorter one is resized before; default image_size."
    )
    interpolation: Interpolation | None = Field(
        None, description="folder: of the resizing, bilinear (default) or bicubic."
    )

    @property
    def chosen(self) -> str:
        """How ``limit`` chose, to go behind a number of images; nothing where they are all."""
        if self.limit is None:
            return ""
        return ", the first ones" if self.choice == "first" else ", stratified by class"


class JudgedThreat(Section):
    """What the attacker may do; fields left out are those of the training."""

    norm: Literal["linf", "l2", "l1"] | None = Field(None, description="Norm of the ball around an image.")
    eps: Radius | None = Field(None, gt=0, description="Radius in pixel space [0, 1], e.g. 8/255.")


class GradientSteps(Section):
    """PGD, its margin variant and MIM."""

    steps: Count = Field(40, ge=1, le=10**5, description="Gradient steps.")
    step_size: Radius | None = Field(
        None, gt=0, description="Length of a step, at most 10 * eps; default 2.5 * eps / steps."
    )
    restarts: Count = Field(5, ge=1, le=1000, description="Independent attempts per image (PGD).")


class Examination(Section):
    """Everything that decides how a classifier is judged."""

    model: JudgedModel = JudgedModel()
    data: JudgedData = JudgedData()
    threat: JudgedThreat = JudgedThreat()
    attacks: tuple[str, ...] = Field(
        ("autoattack",),
        min_length=1,
        description="In order: autoattack (apgd-ce, apgd-t, fab-t, square), autoattack-rand, apgd-ce, apgd-dlr, "
        "apgd-t, fab, fab-t, square, pgd, pgd-margin, mim, cw, deepfool, transfer, adaptive.",
    )
    pgd: GradientSteps = Field(GradientSteps(), description="PGD, its margin variant and MIM.")
    transfer: Address | None = Field(
        None,
        description="transfer: address of the model that examples are made on; weights are of the judged network, "
        "unless they name another: net.pt@my_models:net.",
    )
    every_attack: bool = Field(False, description="Run each attack on all images, not only on those still standing.")
    eps_curve: tuple[Annotated[Radius, Field(ge=0)], ...] = Field(
        (), description="Also measure robust accuracy at these radii (apgd-ce)."
    )
    corruptions: tuple[str, ...] = Field((), description="Families of common corruptions, or all; severities 1 to 5.")
    baseline: FilePath | None = Field(None, description="Summary of another evaluation that mCE is relative to.")
    diagnostics: bool = Field(False, description="Look for signs of gradient masking.")
    examples: Address | None = Field(
        None, description="Folder or s3:// address to save pairs in, one folder an evaluation."
    )
    seed: Count = Field(0, ge=0, le=2**31 - 1, description="Decides all random numbers of the attacks.")
    shard: Images | None = Field(
        None,
        ge=1,
        description="Images that are judged and stored together; what a resumed run skips. Default: several shards a "
        "worker, none larger than a batch.",
    )
    batch_size: BatchSize = Field(250, description="Images attacked at a time.")
    workers: Workers = Workers()
    storage: StoragePlace = StoragePlace()
    tracking: Tracking = Tracking()

    @staticmethod
    def parse(fields: Mapping[str, Any]) -> Examination:
        """Validate fields; the first that cannot work is an :class:`InputError` that names it."""
        return validate(Examination, merge(Examination().model_dump(), fields))

    @staticmethod
    def of_document(document: Mapping[str, Any]) -> Examination:
        """What a claim or an evaluation holds. Where it is older than ``data.choice``, it took the first images."""
        return Examination.parse(merge({"data": {"choice": "first"}}, document))

    def completed(self, training: Experiment | None) -> Examination:
        """The same examination, with what it leaves out taken from the training of the model."""
        if training is None:
            return self
        # Where the images are and how large is no matter of another data set's.
        same = self.data.name in (None, training.data.name)
        fields = {"name", "root", "image_size", "resize", "interpolation"} if same else {"name"}
        of_data = training.data.model_dump(include=fields)
        of_threat = training.threat.model_dump()
        return self.model_copy(
            update={
                "data": self.data.model_copy(update=_missing(self.data, of_data)),
                "threat": self.threat.model_copy(update=_missing(self.threat, of_threat)),
            }
        )

    def digest(self) -> str:
        """SHA-256 of all that decides the verdicts, so not of workers, shards and places."""
        aside = {"workers", "shard", "storage", "tracking", "examples", "baseline"}
        fields = self.model_dump(mode="json", exclude=aside)
        for place in ("root", "download"):
            del fields["data"][place]
        # What older versions did not have is left out where it is as it was then.
        for name, usual in (("resize", (None,)), ("interpolation", (None, "bilinear"))):
            if fields["data"][name] in usual:
                del fields["data"][name]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _missing(section: Section, others: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in others.items() if getattr(section, name) is None}
