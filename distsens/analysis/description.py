"""One analysis: everything that decides what is measured of which models, typed, frozen and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from distsens.attacks import AttackName
from distsens.evaluation import said_of
from distsens.examination import Examination, GradientSteps, JudgedData, JudgedModel, JudgedThreat
from distsens.experiment import (
    Address,
    BatchSize,
    Count,
    Images,
    Number,
    Radius,
    Section,
    StoragePlace,
    Tracking,
    Workers,
    merge,
    validate,
)
from distsens.sensitivity import Replacement


class Ablation(Section):
    """Interventions: which neurons decide."""

    images: Images = Field(200, ge=0, description="So many of the images (stratified) are intervened on; 0 for none.")
    layers: tuple[str, ...] = Field(("auto",), min_length=1, description="Layers: names, globs, or auto.")
    replacements: tuple[Replacement, ...] = Field(
        ("benign", "zero", "mean"), min_length=1, description="What ablated neurons say instead: benign, zero, mean."
    )
    ratios: tuple[Annotated[Number, Field(gt=0, le=1)], ...] = Field(
        (0.02, 0.05, 0.1, 0.2, 0.5), min_length=1, description="Parts of a layer's neurons that are set, in (0, 1]."
    )
    draws: Count = Field(
        10, ge=10, le=10**5, description="Random sets of neurons that the sensitive ones are compared with."
    )
    steps: Count = Field(
        8, ge=1, le=10**5, description="Gradients on the way from benign to adversarial, for contributions."
    )


class Gallery(Section):
    """What the most sensitive neurons see."""

    neurons: Count = Field(
        2, ge=0, le=1000, description="Most sensitive neurons of each layer that are shown; 0 for none."
    )
    images: Count = Field(
        4, ge=1, le=12, description="Images of each: those that activate it most, and change it most."
    )


class Analysis(Section):
    """Everything that decides an analysis."""

    model: JudgedModel = JudgedModel()
    others: tuple[Address, ...] = Field(
        (), description="Addresses of further models, side by side with the first; see model.address."
    )
    names: tuple[str, ...] = Field((), description="What to call the models in the report, in the same order.")
    data: JudgedData = JudgedData()
    threat: JudgedThreat = JudgedThreat()
    attacks: tuple[AttackName, ...] = Field(
        ("pgd",),
        min_length=1,
        description="The first makes the pairs, further ones are compared with it: pgd, cw_pgd, fgsm, fast_fgsm, bim, "
        "mim, step_ll.",
    )
    pgd: GradientSteps = Field(
        GradientSteps(steps=20, restarts=1), description="Steps of the attacks that take several, and restarts."
    )
    eps: tuple[Annotated[Radius, Field(gt=0)], ...] = Field(
        (), description="Further radii at which the first attack is compared."
    )
    pairs: Address | None = Field(
        None, description="Folder or s3:// of pairs that jobs/evaluate.py saved; no attack then."
    )
    layers: tuple[str, ...] = Field(("auto",), min_length=1, description="Layers: names, globs, or auto.")
    by_class: Count = Field(
        100,
        ge=0,
        le=10**6,
        description="Measure each class by itself if there are no more than so many; memory grows with them.",
    )
    measure: Literal["absolute", "relative"] = Field("absolute", description="By what neurons are ranked.")
    ratio: Number = Field(0.1, gt=0, le=1, description="Part of each layer's neurons that counts as sensitive.")
    ablation: Ablation = Ablation()
    gallery: Gallery = Gallery()
    matched_images: Images = Field(
        200, ge=0, description="So many of the images (stratified) by which models' neurons are matched; 0: none."
    )
    output: Address | None = Field(None, description="Folder that also gets the report, its figures and its tables.")
    seed: Count = Field(0, ge=0, le=2**31 - 1, description="Decides random starts, noise and random sets of neurons.")
    shard: Images | None = Field(
        None,
        ge=1,
        description="Images that a worker takes at a time, which decides the last bits of the sums. Default: several "
        "shards a worker.",
    )
    batch_size: BatchSize = Field(16, description="Pairs in a forward or backward pass: memory grows with it.")
    workers: Workers = Workers()
    storage: StoragePlace = StoragePlace()
    tracking: Tracking = Tracking()

    @staticmethod
    def parse(fields: Mapping[str, Any]) -> Analysis:
        """Validate fields; the first that cannot work is an :class:`InputError` that names it."""
        return validate(Analysis, merge(Analysis().model_dump(), fields))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of all models."""
        return (self.model.address, *self.others)

    def examination(self, address: str) -> Examination:
        """The same model, data and threat as an examination: all that can be checked of one, can be here."""
        return Examination(
            model=JudgedModel(**said_of(address, self.model.model_dump(exclude={"address"}), self.addresses)),
            data=self.data,
            threat=self.threat,
            attacks=("pgd",),
            pgd=self.pgd,
            seed=self.seed,
            batch_size=self.batch_size,
            workers=self.workers,
            storage=self.storage,
            tracking=self.tracking,
        )

    def completed(self, examination: Examination) -> Analysis:
        """The same analysis, with what it leaves out of data and threat taken from a completed examination."""
        return self.model_copy(update={"data": examination.data, "threat": examination.threat})
