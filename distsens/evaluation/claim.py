"""A claim of robustness that somebody else can check: what was judged, how, and what became of every image."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from distsens.errors import InputError
from distsens.evaluation.claimed_model import compare_models
from distsens.evaluation.intervals import wilson
from distsens.evaluation.ledger import Ledger, Proportion
from distsens.experiment import Count

FORMAT = 3
_TOLERANCE = 0.003
_UNLIKELY = 0.001
_ROUNDING = 1e-9


# As JSON has it: what is checked here is counted with afterwards.
Number = Annotated[float, Strict()]


class _Part(BaseModel):
    """What a claim must hold, and of which kind; people may add more."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class _Stated(_Part):
    value: Number
    low: Number
    high: Number
    count: Count
    images: Count


class _Attack(_Part):
    settings: dict[str, Any]
    standing: _Stated


class _ListedAttack(_Attack):
    left: str


class _Computes(_Part):
    weights_sha256: str
    logits: list[list[Number | None]]


class _Architecture(_Part):
    name: str
    mean: list[Number] = Field([0.0], min_length=1)
    std: list[Number] = Field([1.0], min_length=1)


class _Weights(_Part):
    sha256: str
    architecture: _Architecture


class _Function(_Weights):
    computes: _Computes


class _Model(_Weights):
    name: str
    additional_data: bool | None = None


class _ComputingModel(_Model, _Function):
    pass


class _Data(_Part):
    name: str
    split: str
    images: Count
    digest: str


class _JudgedData(_Part):
    name: str
    split: str
    limit: Count | None = None
    images: list[Count] = []


class _Examination(_Part):
    attacks: list[str]
    threat: dict[str, Any]
    data: _JudgedData


class _Claim(_Part):
    examination: _Examination
    data: _Data
    threat: dict[str, Any]
    images: Count = Field(ge=1)
    clean_accuracy: _Stated
    robust_accuracy: _Stated
    right: str
    standing: str


class _EarlierClaim(_Claim):
    """Knows models by their files alone, and lists no images after each attack."""

    model: _Model
    source_sha256: str | None
    attacks: dict[str, _Attack]


class _PresentClaim(_Claim):
    model: _ComputingModel
    source: _Function | None
    attacks: dict[str, _ListedAttack]


_FORMATS: dict[object, type[_Claim]] = {2: _EarlierClaim, FORMAT: _PresentClaim}


def proportion(value: Proportion) -> dict[str, float]:
    """A proportion as a JSON object, with its 95 % interval."""
    low, high = value.interval
    return {"value": value.value, "low": low, "high": high, "count": value.count, "images": value.total}


def make_claim(
    ledger: Ledger,
    *,
    examination: Mapping[str, Any],
    model: Mapping[str, Any],
    source: Mapping[str, Any] | None,
    data: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    versions: Mapping[str, str],
    commit: str,
    seconds: float,
) -> dict[str, Any]:
    """What `distsens` claims of a classifier, as a JSON document.

    Beside the fields that RobustBench's entries have (architecture, additional data, threat model, clean and robust
    accuracy, attacks) it says what another person needs in order to check them: digests of weights and data, every
    attack's settings, seed, commit and versions, cost, and which images were classified right, were left by each attack
    and those before it, and withstood all of them, as hexadecimal digits of four images each, the first one highest.

    Parameters
    ----------
    examination : all of its fields.
    model : ``name``, ``sha256`` of its file, ``architecture``, ``computes`` (the fields of its
        :class:`~distsens.evaluation.Fingerprint`) and what else is known.
    source : the same of the model that transferred examples are made on, of which no name is needed.
    data : ``name``, ``split``, ``images``, their ``choice`` (``stratified`` or the ``first`` of the split), ``digest``.
    settings : of the attacks, by name.
    versions, commit : of what judged.
    seconds : that it took.

    Raises
    ------
    InputError : the ledger is not of each of these images once.
    """
    if len(ledger) != data["images"] or ledger.rows["image"].duplicated().any():
        raise InputError("claim", len(ledger), f"a claim is about {data['images']} images, each once")
    return {
        "format": FORMAT,
        "model": dict(model),
        "source": None if source is None else dict(source),
        "data": dict(data),
        "threat": dict(examination["threat"]),
        "attacks": {
            name: {
                "settings": dict(settings[name]),
                "standing": proportion(after),
                "left": _digits(ledger.left[name].tolist()),
            }
            for name, after in ledger.after_attack.items()
        },
        "images": len(ledger),
        "clean_accuracy": proportion(ledger.clean),
        "robust_accuracy": proportion(ledger.robust),
        "right": _digits((ledger.rows["label"] == ledger.rows["prediction"]).tolist()),
        "standing": _digits(ledger.standing.tolist()),
        "evaluations": ledger.spent,
        "seconds": seconds,
        "versions": dict(versions),
        "commit": commit,
        "examination": dict(examination),
    }


def check_claim(document: object, path: str) -> dict[str, Any]:
    """The claim, if it is one of this version's and says the same everywhere.

    Every number is counted again from the images that it lists, and what it says of threat, attacks and data must be
    what its examination says, as that is what is judged anew. Models, data and verdicts are for :func:`verify`, as are
    the counts after each attack of a claim of format 2, which lists no images for them. What it cost, versions, commit
    and the model's name remain the word of who made it, as does whether it saw additional data where nobody else knows.

    Raises
    ------
    InputError : what is wrong.
    """
    if not isinstance(document, dict):
        raise InputError("verify", path, "must hold a claim, a JSON object")
    version = document.get("format")
    if type(version) is not int or (kind := _FORMATS.get(version)) is None:
        known = " and ".join(map(str, _FORMATS))
        raise InputError("verify", path, f"is of format {version}; this version reads {known}")
    try:
        kind.model_validate(document)
    except ValidationError as error:
        details = error.errors()
        if missing := [_name(one["loc"]) for one in details if one["type"] == "missing"]:
            raise InputError("verify", path, f"must hold a claim; it lacks {', '.join(missing)}") from None
        reason = details[0]["msg"].partition(" or instance of ")[0].replace("Input", "it", 1)
        raise InputError("verify", path, f"must hold a claim; of {_name(details[0]['loc'])}, {reason}") from None
    for contradiction in (_contradiction_of_images(document), _contradiction_of_terms(document)):
        if contradiction is not None:
            raise InputError("verify", path, f"contradicts itself: {contradiction}")
    return document


def _name(location: Sequence[str | int]) -> str:
    return ".".join(map(str, location))


def _contradiction_of_images(claim: Mapping[str, Any]) -> str | None:
    """Where the numbers of a claim are not those of the images that it lists."""
    images = claim["images"]
    lists = {key: claim[key] for key in ("right", "standing")}
    lists |= {f"attacks.{name}": one["left"] for name, one in claim["attacks"].items() if "left" in one}
    for key, digits in lists.items():
        if len(digits) != -(-images // 4) or not set(digits) <= set(string.hexdigits):
            return f"{key} must be {-(-images // 4)} hexadecimal digits for {images} images"
    flags = {key: _flags(digits, images) for key, digits in lists.items()}
    in_turn = ["right", *(key for key in lists if "." in key), "standing"]
    for before, after in pairwise(in_turn):
        if any(later and not earlier for earlier, later in zip(flags[before], flags[after], strict=True)):
            return f"{after} lists images that {before} does not"
    stated_of = {f"attacks.{name}": attack["standing"] for name, attack in claim["attacks"].items()}
    stated_of |= {key: claim[key] for key in ("clean_accuracy", "robust_accuracy")}
    listed_in = {"clean_accuracy": "right", "robust_accuracy": "standing"} | {key: key for key in lists if "." in key}
    for key, listed in listed_in.items():
        if stated_of[key]["count"] != sum(flags[listed]):
            return f"{key} counts {stated_of[key]['count']} images, and {sum(flags[listed])} are listed"
    for key, stated in stated_of.items():
        if stated["images"] != images or not 0 <= stated["count"] <= images:
            return f"{key} counts {stated['count']} of {stated['images']} images, and there are {images}"
        counted_again = proportion(Proportion(stated["count"], images))
        for part in ("value", "low", "high"):
            if not math.isclose(stated[part], counted_again[part], abs_tol=_ROUNDING):
                return f"{key}.{part} is {stated[part]}, and its count makes {counted_again[part]:.6g}"
    falling = [sum(flags["right"]), *(attack["standing"]["count"] for attack in claim["attacks"].values())]
    if falling != sorted(falling, reverse=True) or falling[-1] != sum(flags["standing"]):
        return f"after the attacks in turn {falling} images stand, and {sum(flags['standing'])} are listed"
    return None


def _contradiction_of_terms(claim: Mapping[str, Any]) -> str | None:
    """Where a claim says another threat or other images than its examination."""
    examination, data = claim["examination"], claim["data"]
    judged = examination["data"]
    for what, stated, examined in (
        ("threat", claim["threat"], examination["threat"]),
        ("data.name", data["name"], judged["name"]),
        ("data.split", data["split"], judged["split"]),
        ("data.images", data["images"], claim["images"]),
        # Older claims do not say it: they were about the first images.
        ("data.choice", data.get("choice", "first"), judged.get("choice", "first")),
        ("images", claim["images"], claim["images"] if judged.get("limit") is None else judged["limit"]),
    ):
        if stated != examined:
            return f"{what} is {stated}, and its examination was of {examined}"
    return "it is about images that somebody chose" if judged.get("images") else None


@dataclass(frozen=True)
class Verification:
    """What became of a claim when a sample of its images was judged anew.

    images : judged anew; overclaimed : of them, images claimed to stand, or to be right, that do not.
    faults : by which the claim is false; notices : what differs and does not make it so.
    """

    images: int
    overclaimed: int
    underclaimed: int
    faults: tuple[str, ...]
    notices: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Nothing else differs, and no more than 0.3 % of the images, rounding between machines, are overclaimed."""
        return not self.faults and self.overclaimed <= round(_TOLERANCE * self.images)

    @property
    def sentence(self) -> str:
        """The verdict for people."""
        if self.faults:
            return "the claim does not hold: " + "; ".join(self.faults)
        counts = (
            f"of {self.images} images judged anew, {self.overclaimed} are claimed to withstand what they do not, and "
            f"{self.underclaimed} withstand what they are claimed not to; of all images no more than "
            f"{wilson(self.overclaimed, self.images)[1]:.1%} are overclaimed, with 97.5 % confidence"
        )
        return f"the claim {'holds' if self.holds else 'does not hold'}: {counts}"


def verify(
    claim: Mapping[str, Any],
    ledger: Ledger,
    *,
    model: Mapping[str, Any],
    data_digest: str,
    source: Mapping[str, Any] | None,
    settings: Mapping[str, Mapping[str, Any]],
    numbers: Sequence[int] | None = None,
) -> Verification:
    """Compare a claim with a ledger of some of its images; the other parameters are as for :func:`make_claim`.

    ``numbers``, ascending, are those of the claim's images within the split; by default they are the first.
    """
    refuted = differences(claim, model=model, data_digest=data_digest, source=source, settings=settings)
    right, standing = (_flags(claim[key], claim["images"]) for key in ("right", "standing"))
    place = {number: place for place, number in enumerate(range(claim["images"]) if numbers is None else numbers)}
    judged = ledger.rows["image"].tolist()
    if strange := [number for number in judged if number not in place]:
        raise InputError("verify", strange[0], "this image is not of those that are claimed")
    if len({*judged}) != len(judged):
        raise InputError("verify", len(judged), "images that are judged are there twice")
    images = [place[number] for number in judged]
    over = under = 0
    for image, label, prediction, stands in zip(
        images, ledger.rows["label"], ledger.rows["prediction"], ledger.standing, strict=True
    ):
        over += (right[image] and label != prediction) or (standing[image] and not stands)
        under += (not right[image] and label == prediction) or (not standing[image] and stands)
    faults = (*refuted.faults, *_faults_in_turn(claim, ledger, images))
    return Verification(len(ledger), over, under, faults, refuted.notices)


def _faults_in_turn(claim: Mapping[str, Any], ledger: Ledger, images: Sequence[int]) -> list[str]:
    """The attacks, but for the last one, that are claimed to leave more images than they do.

    ``images`` are the places of the ledger's images among the claim's.

    What the last one leaves is what stands in the end. Which of two attacks breaks an image that both nearly miss is
    up to rounding, so after each of the others one image more than in the end may differ. (Of 400 images of MNIST, an
    adversarially trained network and APGD none did, in other layouts, batches and numbers of threads.)
    """
    faults = []
    allowed = _allowed_in_turn(len(ledger))
    for name, attack in list(claim["attacks"].items())[:-1]:
        found = ledger.left[name].tolist()
        if "left" in attack:
            claimed = _flags(attack["left"], claim["images"])
            over = sum(claimed[image] and not left for image, left in zip(images, found, strict=True))
            if over > allowed:
                faults.append(f"of {len(found)} images judged anew, {name} breaks {over} that it is claimed to leave")
        elif too_few(sum(found) + allowed, len(found), attack["standing"]["count"], claim["images"]):
            stated = f"{attack['standing']['count']} of {claim['images']}"
            faults.append(f"{name} leaves {sum(found)} of {len(found)} images judged anew, claimed are {stated}")
    return faults


def _allowed_in_turn(images: int) -> int:
    return 1 + round(_TOLERANCE * images)


def too_few(found: int, drawn: int, claimed: int, images: int) -> bool:
    """Whether so few, of images drawn at random, all but rule out that so many of all are left (hypergeometric)."""
    fewer = sum(
        math.comb(claimed, count) * math.comb(images - claimed, drawn - count)
        for count in range(max(0, drawn - (images - claimed)), min(found, drawn, claimed) + 1)
    )
    return fewer < _UNLIKELY * math.comb(images, drawn)


@dataclass(frozen=True)
class Differences:
    """What no image need be judged to see: ``faults``, by which a claim is false, and ``notices``."""

    faults: tuple[str, ...]
    notices: tuple[str, ...]


def differences(
    claim: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    data_digest: str,
    source: Mapping[str, Any] | None,
    settings: Mapping[str, Mapping[str, Any]],
) -> Differences:
    """What is another model, other images or another attack than is claimed; parameters as for :func:`make_claim`."""
    compared = [
        compare_models("the model", claim["model"], model),
        compare_models("the model that transfer names", _source(claim), source),
    ]
    faults = [one.fault for one in compared if one.fault is not None]
    if data_digest != (claimed := claim["data"]["digest"]):
        faults.append(f"the data has SHA-256 {data_digest[:12]}, claimed is {claimed[:12]}")
    additional, known = (one.get("additional_data") for one in (claim["model"], model))
    if additional is not None and known is not None and additional != known:
        faults.append(f"the model was trained {_with(known)} additional data, claimed is {_with(additional)}")
    for name, attack in claim["attacks"].items():
        if attack["settings"] != settings[name]:
            faults.append(f"{name} has the settings {settings[name]}, claimed are {attack['settings']}")
    return Differences(tuple(faults), tuple(notice for one in compared for notice in one.notices))


def _with(additional: bool) -> str:
    return "with" if additional else "without"


def _source(claim: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if claim["format"] == FORMAT:
        source: Mapping[str, Any] | None = claim["source"]
        return source
    return None if claim["source_sha256"] is None else {"sha256": claim["source_sha256"]}


def _digits(flags: Sequence[bool]) -> str:
    padded = [*flags, *[False] * (-len(flags) % 4)]
    return "".join(f"{int(''.join('01'[flag] for flag in padded[i : i + 4]), 2):x}" for i in range(0, len(padded), 4))


def _flags(digits: str, count: int) -> list[bool]:
    bits = "".join(f"{int(digit, 16):04b}" for digit in digits)
    return [bit == "1" for bit in bits[:count]]
