"""One experiment: everything that decides a training run, typed, frozen and checked.

A recipe is a YAML file with the fields of :class:`Experiment`; ``extends: other-recipe`` takes another one first.
Wherever a number is expected a fraction such as ``8/255`` will do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from distsens.errors import InputError
from distsens.strict_yaml import DEEPEST, LONGEST, RefusedYamlError, load_yaml
from distsens.words import LONGEST_TEXT, fault_of_path, fault_of_text

_LEAST_ADVERSARIAL_EPS = 1e-6
"""Far below the 1/255 of a grey level, and where twins begin to be the images themselves in 32 bits."""
_MOST_STEP_SIZE = 10.0
"""In eps: any step of more than twice eps crosses the whole ball."""
_LONGEST_CHAIN = 20
_LONGEST_NAME = 160  # of 200 that the name of a run may have, with a time and of which sweep it is the champion
_OCTAL = re.compile(r"[-+]?0[0-9_]+")


def parse_number(value: object) -> object:
    """``"8/255"``, and ``"1e-3"`` which YAML takes for text, as numbers; everything else is left to pydantic.

    ``"017"``, which is 15 for some and 17 for others, is no number.
    """
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split("/")]
    if len(parts) > 2 or not value.isascii() or any(map(_OCTAL.fullmatch, parts)):
        return value
    try:
        return float(parts[0]) / float(parts[1]) if len(parts) == 2 else float(parts[0])
    except (ValueError, ZeroDivisionError):
        return value


P = TypeVar("P", str, Path)

# Strict, because otherwise true, which a flag without a value means, would count as 1.
Number = Annotated[float, Strict(), BeforeValidator(parse_number)]
Count = Annotated[int, Strict()]
Images = Annotated[int, Strict(), Field(le=10**9)]
Pixels = Annotated[int, Strict(), Field(le=10**4)]
BatchSize = Annotated[int, Strict(), Field(ge=1, le=10**6)]
Radius = Annotated[float, Strict(), BeforeValidator(parse_number), Field(le=1e8)]
"""In pixel space. In linf the largest is 1, in l2 and l1 what lies between two images of the data."""
Mean = Annotated[float, Strict(), BeforeValidator(parse_number), Field(ge=-1000, le=1000)]
Std = Annotated[float, Strict(), BeforeValidator(parse_number), Field(gt=0, le=1000)]
Part = Annotated[float, Strict(), BeforeValidator(parse_number), Field(ge=0, le=1)]


def _usable(path: P) -> P:
    if fault := fault_of_path(str(path)):
        raise ValueError(fault)
    return path


Address = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value),
    AfterValidator(_usable),
]
"""A path, or the URL of a bucket's prefix."""
FilePath = Annotated[Path, AfterValidator(_usable)]
Precision = Literal["fp32", "bf16"]
Interpolation = Literal["bilinear", "bicubic"]


S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """Fields that belong together: frozen, none unknown, none that is not a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=LONGEST_TEXT)

    @field_validator("*")
    @classmethod
    def _holds_text(cls, value: object) -> object:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str) and (fault := fault_of_text(one)):
                raise ValueError(fault)
        return value

    def flat(self) -> dict[str, str | int | float | bool | None]:
        """Fields as ``{"threat.eps": 0.3, ...}``, lists as JSON: MLflow's parameters."""
        return _flatten(self.model_dump(mode="json"))

    def differences(self: S, other: S) -> list[str]:
        """Dotted names of the fields in which two sections differ."""
        mine, theirs = self.flat(), other.flat()
        return [field for field in {**mine, **theirs} if mine.get(field) != theirs.get(field)]


class Data(Section):
    """What is trained on."""

    name: str = Field(
        "digits",
        description="Data set: digits (embedded), mnist, fashion_mnist, kmnist, cifar10, cifar100, svhn, "
        "folder (of class folders) or npz.",
    )
    root: Address | None = Field(
        None,
        description="Folder of the data sets, or the folder (or s3://bucket/prefix) or npz itself; default "
        "$DISTSENS_DATA, else ./data.",
    )
    download: bool = Field(False, description="Download the data set into the folder if it is not there.")
    validation_fraction: Number | None = Field(
        None,
        gt=0,
        lt=1,
        description="Part of the training set held out, stratified; default: the validation split that the data has, "
        "else 0.1.",
    )
    limit: Images | None = Field(None, ge=1, description="Train on this many images only (stratified).")
    augment: tuple[str, ...] = Field(
        (), description="Augmentations on the device, in order: crop, flip, cutout, trivial_augment."
    )
    image_size: Pixels | None = Field(None, ge=1, description="folder: resize and crop images to squares of this side.")
    resize: Pixels | None = Field(
        None, ge=1, description="folder: side to which the shorter one is resized before; default image_size."
    )
    interpolation: Interpolation = Field("bilinear", description="folder: of the resizing, bilinear or bicubic.")
    test_fraction: Number = Field(
        0.2, gt=0, lt=1, description="folder, npz: part of the training set held out where there is no test split."
    )
    memory: Number = Field(
        4.0, ge=0, le=1e6, description="folder: GiB of images kept in memory; more are decoded as needed."
    )
    decoding_cpus: Count = Field(
        0,
        ge=0,
        le=10**5,
        description="folder: cores, beside those of the workers, on which Ray Data decodes what is not in memory; "
        "0: each worker decodes its own.",
    )
    extra: FilePath | None = Field(
        None, description="An .npz of extra images and labels to train on, e.g. synthetic ones."
    )
    extra_sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 that this file must have; a run fills it in."
    )
    extra_ratio: Number = Field(0.5, gt=0, lt=1, description="Part of each global batch that is extra images.")


class Model(Section):
    """The classifier, which takes images in [0, 1]."""

    name: str = Field(
        "small_cnn",
        description="small_cnn, lenet5, resnet18, resnet34, resnet50, preact_resnet18, vgg11_bn, vgg16_bn, vit_tiny, "
        "wrn34_10 and other wide ResNets, torchvision:resnet50 and the like, or package.module:factory.",
    )
    small_images: bool = Field(
        False, description="torchvision models: a 3x3 stem that keeps the resolution, for images of about 32x32."
    )
    weights: FilePath | None = Field(
        None,
        description="Initial weights: a file that every worker can read, or its entry as FILE#ENTRY; default random.",
    )
    weights_sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 that the file of weights must have; a run fills it in."
    )
    mean: tuple[Mean, ...] = Field((0.0,), description="Subtracted from each channel inside the model (1 or C values).")
    std: tuple[Std, ...] = Field((1.0,), description="Each channel is then divided by it inside the model.")


class ThreatModel(Section):
    """What the attacker may do."""

    norm: Literal["linf", "l2", "l1"] = Field("linf", description="Norm of the ball around an image.")
    eps: Radius = Field(8 / 255, ge=0, description="Radius in pixel space [0, 1], e.g. 8/255.")

    @model_validator(mode="after")
    def _in_pixel_space(self) -> ThreatModel:
        if self.norm == "linf" and self.eps > 1:
            raise InputError("threat.eps", self.eps, "pixels lie in [0, 1], so a linf eps must too (8/255, not 8)")
        return self


class Attack(Section):
    """A gradient attack within the threat model."""

    name: Literal["auto", "fgsm", "fast_fgsm", "bim", "mim", "step_ll", "pgd", "cw_pgd"] = Field(
        "auto",
        description="Attack; auto: what the objective's paper trains with (for nat, fast_at and free_at one step, of a "
        "length of its own), and pgd for validation and test.",
    )
    steps: Count = Field(10, ge=1, le=10**5, description="Gradient steps; fgsm, fast_fgsm and step_ll take one.")
    step_size: Radius | None = Field(
        None,
        gt=0,
        description="Length of a step, at most 10 * eps; default 2.5 * eps / steps, bim and mim eps / steps, fast_fgsm "
        "1.25 * eps; fgsm and step_ll take eps.",
    )
    random_start: Literal["uniform", "normal", "none"] = Field(
        "uniform",
        description="pgd, cw_pgd: start uniformly in the ball, 0.001 * normal beside the image, or at the image.",
    )
    momentum: Number = Field(1.0, ge=0, le=10, description="mim: decay of the sum of gradients.")
    l1_fraction: Number = Field(0.01, gt=0, le=1, description="l1: part of the image's values that a step moves.")
    restarts: Count = Field(1, ge=1, le=1000, description="Independent attempts per image.")
    precision: Precision = Field("fp32", description="Number type of the attack's passes.")


class ObjectiveChoice(Section):
    """The loss that is trained with; SNS comes on top of any."""

    name: Literal["standard", "nat", "pgd_at", "fast_at", "free_at", "alp", "trades", "mart"] = Field(
        "pgd_at", description="Objective."
    )
    beta: Number | None = Field(
        None,
        ge=0,
        le=1000,
        description="alp, trades, mart: weight of the term between twins; default the paper's 0.5, 6, 5.",
    )
    alpha: Number = Field(0.5, ge=0, le=1, description="nat: weight of the benign images, 1 - alpha of their twins.")
    replays: Count = Field(
        8,
        ge=1,
        le=1000,
        description="free_at: times that each batch is used in a row; epochs still count passes over the data.",
    )
    label_smoothing: Number = Field(
        0.0, ge=0, lt=1, description="Part of the label's weight in a cross-entropy that all classes share (not mart)."
    )

    @model_validator(mode="after")
    def _smooths_a_cross_entropy(self) -> ObjectiveChoice:
        if self.name == "mart" and self.label_smoothing > 0:
            raise InputError(
                "objective.label_smoothing", self.label_smoothing, "mart has no cross-entropy to smooth: leave it at 0"
            )
        return self


class Stabilize(Section):
    """Sensitive neuron stabilizing (SNS)."""

    weight: Number = Field(0.0, ge=0, le=1e6, description="Weight of the term at its full strength; 0 turns SNS off.")
    ratio: Number = Field(0.1, gt=0, le=1, description="Part of each layer's neurons that is stabilized.")
    selection: Literal["top", "random", "bottom", "all"] = Field("top", description="Which neurons; top is SNS.")
    layers: tuple[str, ...] = Field(
        ("auto",),
        min_length=1,
        description="Layers: names, globs, or auto (convolutions and linear layers called once, but the logits).",
    )
    distance: Literal["l1", "l2", "cosine"] = Field(
        "l1", description="Distance between benign and adversarial outputs."
    )
    measure: Literal["absolute", "relative"] = Field(
        "absolute", description="Sensitivity as it is, or divided by the neuron's mean benign output."
    )
    pairs: Number = Field(
        1 / 16, gt=0, le=1, description="Part of a batch's pairs that is compared: 1/n takes every n-th."
    )
    refresh_steps: Count | None = Field(
        None, ge=1, le=10**9, description="Select anew every n steps and at the end of each epoch; default there alone."
    )
    decay: Number = Field(0.5, ge=0, lt=1, description="Weight of the past in the average that selects.")
    warmup_start: Number = Field(0.3, ge=0, le=1, description="Part of training after which the weight starts to grow.")
    warmup_end: Number = Field(0.6, ge=0, le=1, description="Part of training at which the weight is full.")

    @model_validator(mode="after")
    def _ordered(self) -> Stabilize:
        if self.warmup_end < self.warmup_start:
            raise InputError("stabilize.warmup_end", self.warmup_end, f"at least warmup_start ({self.warmup_start})")
        return self


class Training(Section):
    """Optimisation."""

    epochs: Count = Field(20, ge=1, le=10**5, description="Passes over the training set.")
    batch_size: BatchSize = Field(
        128,
        description="Images in a step, over all workers together; the last batch of an epoch is dropped where it is "
        "not full.",
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="Optimizer (SGD with Nesterov momentum).")
    lr: Number = Field(0.1, gt=0, le=1000, description="Highest learning rate.")
    momentum: Number = Field(0.9, ge=0, lt=1, description="SGD: momentum.")
    weight_decay: Number = Field(5e-4, ge=0, le=100, description="Weight decay.")
    schedule: Literal["onecycle", "cosine", "piecewise", "constant"] = Field(
        "onecycle", description="Learning rate over training."
    )
    warmup: Number | None = Field(
        None, ge=0, lt=1, description="Part of training in which the rate rises; default 0.3 for onecycle, else 0."
    )
    milestones: tuple[Part, ...] = Field((0.5, 0.75), description="piecewise: parts of training at which lr drops.")
    drop: Number = Field(0.1, gt=0, le=1, description="piecewise: factor of each drop.")
    eps_warmup: Number = Field(0.0, ge=0, le=1, description="Part of training in which the attack's eps grows from 0.")
    gradient_clip: Number | None = Field(None, gt=0, le=1e6, description="Largest gradient norm; default no clipping.")
    awp_gamma: Number | None = Field(
        None, gt=0, le=1, description="Adversarial weight perturbation (AWP) by this part of each weight; usual 0.005."
    )
    awp_warmup: Number = Field(0.0, ge=0, le=1, description="Part of training before AWP begins.")
    ema_decay: Number | None = Field(None, gt=0, lt=1, description="Average the weights with this decay; default off.")
    precision: Precision = Field("fp32", description="Number type of the training forward (weights stay fp32).")
    patience: Count | None = Field(
        None,
        ge=1,
        le=10**5,
        description="End after n epochs without better robust accuracy (standard: clean), counted from when eps and "
        "SNS are at their full strength; default never.",
    )
    batch_norm: Literal["joint", "separate", "adversarial", "benign"] = Field(
        "joint",
        description="Statistics of benign images and adversarial twins: joint, or separate for each half; running "
        "statistics from both halves, or from the adversarial or benign one alone.",
    )
    sync_batch_norm: bool = Field(
        True,
        description="Several workers: batch norm by the statistics of all their images, so that their number does not "
        "matter; false: each by those of its own.",
    )


class OverfittingAlarm(Section):
    """Catastrophic overfitting, looked for where the training attack takes fewer steps than the validation attack."""

    action: Literal["none", "warn", "stop", "rollback"] = Field(
        "warn",
        description="Say so, stop, or go back to the best epoch and on with the validation attack; none is silent.",
    )
    gap: Number = Field(0.2, gt=0, le=1, description="Least accuracy under the training attack above the robust one.")
    fall: Number = Field(0.5, gt=0, lt=1, description="Robust accuracy is at most this part of the run's best.")


class Workers(Section):
    """Ray Train workers."""

    num: Count = Field(2, ge=1, le=10**5, description="Number of workers.")
    cpus: Count = Field(1, ge=1, le=10**4, description="CPU cores, and so threads, of each.")
    gpus: Count = Field(0, ge=0, le=1, description="GPUs of each (0 or 1).")
    max_failures: Count = Field(
        2, ge=0, le=10**5, description="Restarts from the newest checkpoint when a worker or node dies."
    )


class CheckpointPolicy(Section):
    """What is kept to resume from."""

    every: Count = Field(1, ge=1, le=10**5, description="Save every n epochs (and on a new best).")
    keep: Count = Field(2, ge=1, le=10**5, description="Newest checkpoints kept, beside the best.")


class StoragePlace(Section):
    """Where runs are kept."""

    path: Address | None = Field(
        None,
        description="Folder of the runs, or s3://bucket/prefix (endpoint, region, credentials: the AWS variables); "
        "default ./runs (for a submitted Ray job ~/distsens/runs on the head).",
    )


class Tracking(Section):
    """MLflow."""

    uri: str | None = Field(
        None, description="Tracking URI; default $MLFLOW_TRACKING_URI, else sqlite in the folder of the runs."
    )
    # Databases have room for 256 characters, whatever MLflow itself takes.
    experiment: str = Field("distsens", min_length=1, max_length=250, description="MLflow experiment.")


class Experiment(Section):
    """Everything that decides a training run."""

    name: str = Field(
        "experiment",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=_LONGEST_NAME,
        description="Name; runs are called after it.",
    )
    seed: Count = Field(
        0, ge=0, le=2**31 - 1, description="Decides splits, initial weights, order, augmentation and attacks."
    )
    data: Data = Data()
    model: Model = Model()
    threat: ThreatModel = ThreatModel()
    attack: Attack = Field(Attack(), description="The attack trained with.")
    validation: Attack = Field(
        Attack(),
        description="The cheap attack that selects the best epoch, on validation (standard: clean accuracy does).",
    )
    test: Attack = Field(Attack(steps=20), description="The attack that judges the best epoch once, on test.")
    objective: ObjectiveChoice = ObjectiveChoice()
    stabilize: Stabilize = Stabilize()
    training: Training = Training()
    alarm: OverfittingAlarm = OverfittingAlarm()
    workers: Workers = Workers()
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    storage: StoragePlace = StoragePlace()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _a_ball_to_attack_in(self) -> Experiment:
        """Examples beside the images themselves would teach nothing, for all the time that they take."""
        eps, why = self.threat.eps, None
        if self.objective.name != "standard":
            why = f"objective.name {self.objective.name}"
        elif self.stabilize.weight > 0:
            why = f"stabilize.weight {self.stabilize.weight:g}"
        if why is not None and eps < _LEAST_ADVERSARIAL_EPS:
            raise InputError("threat.eps", eps, f"at least {_LEAST_ADVERSARIAL_EPS:g} with {why}, as in 8/255")
        for section in ("attack", "validation", "test"):
            check_step_size(f"{section}.step_size", getattr(self, section).step_size, eps)
        return self

    @model_validator(mode="after")
    def _one_image_a_worker(self) -> Experiment:
        if self.training.batch_size < self.workers.num:
            raise InputError(
                "training.batch_size", self.training.batch_size, f"at least one image a worker ({self.workers.num})"
            )
        return self

    @staticmethod
    def parse(fields: Mapping[str, Any]) -> Experiment:
        """Validate fields; the first that cannot work is an :class:`InputError` that names it."""
        # On top of the defaults, because a section's own defaults may be others: test has 20 steps, any attack 10.
        return validate(Experiment, merge(Experiment().model_dump(), fields))

    def to_yaml(self) -> str:
        """The whole experiment as a recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def digest(self) -> str:
        """SHA-256 of all that decides the trained parameters, so not of workers, places and names."""
        aside = {"name", "workers", "checkpoint", "storage", "tracking"}
        fields = self.model_dump(mode="json", exclude={*aside, "data"})
        fields["data"] = self.data.model_dump(mode="json", exclude={"root", "download", "memory", "decoding_cpus"})
        # What older versions did not have is left out where it is as it was then.
        for name in ("resize", "interpolation"):
            if fields["data"][name] == Data.model_fields[name].default:
                del fields["data"][name]
        # A file's content decides, wherever it lies.
        if self.model.weights_sha256 is not None:
            from distsens.models import split_part  # here, because torch takes seconds to import

            _, part = split_part(fields["model"].pop("weights") or "")
            fields["model"] |= {} if part is None else {"part": part}
        del fields["data"]["extra" if self.data.extra_sha256 is not None else "extra_sha256"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def check_step_size(field: str, step_size: float | None, eps: float) -> None:
    """Refuse steps that are far longer than the ball is wide; of a ball of radius 0 there is nothing to say."""
    if step_size is not None and step_size > _MOST_STEP_SIZE * eps > 0:
        raise InputError(
            field,
            step_size,
            f"at most {_MOST_STEP_SIZE:g} times eps ({eps:g}), as steps of 2 * eps cross the whole ball",
        )


def load_recipe(recipe: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Fields of a recipe given by name (looked up in the folders) or by the path of a YAML file."""
    return _load_recipe(recipe, tuple(folders), ())


def name_after(recipe: str) -> str:
    """The name of an experiment after its recipe's file: what a run's name may hold, without accents or spaces."""
    plain = unicodedata.normalize("NFKD", Path(recipe).stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:_LONGEST_NAME] or "experiment"


def _load_recipe(recipe: str, folders: tuple[Path, ...], above: tuple[str, ...]) -> dict[str, Any]:
    path = _find_recipe(recipe, folders)
    if str(path) in above:
        raise InputError("extends", recipe, "the recipes extend one another in a circle")
    if len(above) == _LONGEST_CHAIN:
        raise InputError("extends", recipe, f"more than {_LONGEST_CHAIN} recipes extend one another")
    try:
        with path.open(encoding="utf-8") as file:
            fields = load_yaml(file.read(LONGEST + 1))
    except RefusedYamlError as error:
        raise InputError("recipe", str(path), str(error)) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError("recipe", str(path), "it is not readable YAML: " + " ".join(str(error).split())) from None
    fields = {} if fields is None else fields
    if not isinstance(fields, dict):
        raise InputError("recipe", str(path), "it must hold fields, as in data: {name: digits}")
    base = fields.pop("extends", None)
    if base is None:
        return fields
    if not isinstance(base, str):
        raise InputError("extends", base, "it takes the name of a recipe, or the path of a YAML file")
    return merge(_load_recipe(base, (path.parent, *folders), (*above, str(path))), fields)


def _find_recipe(recipe: str, folders: tuple[Path, ...]) -> Path:
    if fault := fault_of_path(recipe):
        raise InputError("recipe", recipe, fault)
    if "/" in recipe or recipe.lower().endswith((".yaml", ".yml")):
        path = Path(recipe).expanduser()
        if not os.path.isfile(path):
            raise InputError("recipe", recipe, "there is no such file")
        return path.resolve()
    for folder in folders:
        if os.path.isfile(path := folder / f"{recipe}.yaml"):
            return path.resolve()
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise InputError("recipe", recipe, "one of " + ", ".join(known) + ", or the path of a YAML file")


def branch(name: str, value: object) -> dict[str, Any]:
    """The fields that a dotted name stands for: ``{"threat": {"eps": 0.3}}`` for ``threat.eps``."""
    *sections, last = name.split(".")
    if len(sections) >= DEEPEST:
        raise InputError(name, value, f"there is no such field: sections are not {DEEPEST} levels deep")
    fields = {last: value}
    for section in reversed(sections):
        fields = {section: fields}
    return fields


def merge(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with ``changes`` on top, section by section."""
    merged = dict(fields)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool | None]:
    flat: dict[str, str | int | float | bool | None] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value) if isinstance(value, list) else value
    return flat


def validate(kind: type[S], fields: Mapping[str, Any]) -> S:
    """Fields as a section of this kind; the first that cannot work is an :class:`InputError` that names it."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _first(kind, error) from None


def _first(kind: type[Section], error: ValidationError) -> InputError:
    details = error.errors(include_url=False)[0]
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
    names = [part for part in details["loc"] if isinstance(part, str)]
    return InputError(".".join(names) or kind.__name__.lower(), details["input"], _allowed(kind, details, names))


def _allowed(kind: type[Section], details: ErrorDetails, names: list[str]) -> str:
    section: Any = kind
    for name in names[:-1]:
        section = section.model_fields[name].annotation if _is_section(section) else None
    fields = section.model_fields if _is_section(section) else {}
    if details["type"] == "extra_forbidden":
        return "there is no such field; allowed are " + ", ".join(fields)
    message = details["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    limits = fields[names[-1]].metadata if names and names[-1] in fields else []
    bounds = [
        f"{sign} {bound}"
        for limit in limits
        for word, sign in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))
        if (bound := getattr(limit, word, None)) is not None
    ]
    return f"{message} (allowed: {', '.join(bounds)})" if len(bounds) > 1 else message


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
