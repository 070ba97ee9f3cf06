"""A claim of robustness that somebody else can check: what was judged, how, and what became of every image."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distsens.errors import InputError
from distsens.evaluation.intervals import wilson
from distsens.evaluation.ledger import Ledger, Proportion
from distsens.experiment import Count, Number

FORMAT = 2
_TOLERANCE = 0.003
_ROUNDING = 1e-9


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


class _Model(_Part):
    name: str
    sha256: str
    architecture: dict[str, Any]


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
    model: _Model
    source_sha256: str | None
    data: _Data
    threat: dict[str, Any]
    attacks: dict[str, _Attack]
    images: Count = Field(ge=1)
    clean_accuracy: _Stated
    robust_accuracy: _Stated
    right: str
    standing: str


def proportion(value: Proportion) -> dict[str, float]:
    """A proportion as a JSON object, with its 95 % interval."""
    low, high = value.interval
    return {"value": value.value, "low": low, "high": high, "count": value.count, "images": value.total}


def make_claim(
    ledger: Ledger,
    *,
    examination: Mapping[str, Any],
    model: Mapping[str, Any],
    source_sha256: str | None,
    data: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    versions: Mapping[str, str],
    commit: str,
    seconds: float,
) -> dict[str, Any]:
    """What `distsens` claims of a classifier, as a JSON document.

    Beside the fields that RobustBench's entries have (architecture, additional data, threat model, clean and robust
    accuracy, attacks) it says what another person needs in order to check them: digests of weights and data, every
    attack's settings, seed, commit and versions, cost, and which images were classified right and which withstood every
    attack, as hexadecimal digits of four images each, the first one highest.

    Parameters
    ----------
    examination : all of its fields.
    model : ``name``, ``sha256``, ``architecture`` and what else is known.
    source_sha256 : of the weights of the model that transferred examples are made on.
    data : ``name``, ``split``, ``images`` and ``digest``.
    settings : of the attacks, by name.
    versions, commit : of what judged.
    seconds : that it took.
    """
    return {
        "format": FORMAT,
        "model": dict(model),
        "source_sha256": source_sha256,
        "data": dict(data),
        "threat": dict(examination["threat"]),
        "attacks": {
            name: {"settings": dict(settings[name]), "standing": proportion(after)}
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
    what its examination says, as that is what is judged anew. Digests and verdicts are for :func:`verify`; what it
    cost, versions, commit, the model's name and whether it saw additional data remain the word of who made it.

    Raises
    ------
    InputError : what is wrong.
    """
    if not isinstance(document, dict):
        raise InputError("verify", path, "must hold a claim, a JSON object")
    if document.get("format") != FORMAT:
        raise InputError("verify", path, f"is of format {document.get('format')}; this version reads {FORMAT}")
    try:
        _Claim.model_validate(document)
    except ValidationError as error:
        details = error.errors()
        if missing := [_name(one["loc"]) for one in details if one["type"] == "missing"]:
            raise InputError("verify", path, f"must hold a claim; it lacks {', '.join(missing)}") from None
        kind = details[0]["msg"].partition(" or instance of ")[0].replace("Input", "it", 1)
        raise InputError("verify", path, f"must hold a claim; of {_name(details[0]['loc'])}, {kind}") from None
    for contradiction in (_contradiction_of_images(document), _contradiction_of_terms(document)):
        if contradiction is not None:
            raise InputError("verify", path, f"contradicts itself: {contradiction}")
    return document


def _name(location: Sequence[str | int]) -> str:
    return ".".join(map(str, location))


def _contradiction_of_images(claim: Mapping[str, Any]) -> str | None:
    """Where the numbers of a claim are not those of the images that it lists."""
    images, lists = claim["images"], ("right", "standing")
    for key in lists:
        if len(claim[key]) != -(-images // 4) or not set(claim[key]) <= set(string.hexdigits):
            return f"{key} must be {-(-images // 4)} hexadecimal digits for {images} images"
    right, standing = (_flags(claim[key], images) for key in lists)
    if any(stands and not is_right for is_right, stands in zip(right, standing, strict=True)):
        return "standing lists images that right does not"
    after = {f"attacks.{name}": attack["standing"] for name, attack in claim["attacks"].items()}
    for key, counted in (("clean_accuracy", sum(right)), ("robust_accuracy", sum(standing))):
        after[key] = claim[key]
        if claim[key]["count"] != counted:
            return f"{key} counts {claim[key]['count']} images, and {counted} are listed"
    for key, stated in after.items():
        if stated["images"] != images or not 0 <= stated["count"] <= images:
            return f"{key} counts {stated['count']} of {stated['images']} images, and there are {images}"
        counted_again = proportion(Proportion(stated["count"], images))
        for part in ("value", "low", "high"):
            if not math.isclose(stated[part], counted_again[part], abs_tol=_ROUNDING):
                return f"{key}.{part} is {stated[part]}, and its count makes {counted_again[part]:.6g}"
    falling = [sum(right), *(attack["standing"]["count"] for attack in claim["attacks"].values())]
    if falling != sorted(falling, reverse=True) or falling[-1] != sum(standing):
        return f"after the attacks in turn {falling} images stand, and {sum(standing)} are listed"
    return None


def _contradiction_of_terms(claim: Mapping[str, Any]) -> str | None:
    """Where a claim says another threat or other images than its examination, of which both must be the first."""
    examination, data = claim["examination"], claim["data"]
    judged = examination["data"]
    for what, stated, examined in (
        ("threat", claim["threat"], examination["threat"]),
        ("data.name", data["name"], judged["name"]),
        ("data.split", data["split"], judged["split"]),
        ("data.images", data["images"], claim["images"]),
        ("images", claim["images"], claim["images"] if judged.get("limit") is None else judged["limit"]),
    ):
        if stated != examined:
            return f"{what} is {stated}, and its examination was of {examined}"
    return "it is about images that somebody chose" if judged.get("images") else None


@dataclass(frozen=True)
class Verification:
    """What became of a claim when a sample of its images was judged anew.

    images : judged anew; overclaimed : of them, images claimed to stand, or to be right, that do not.
    """

    images: int
    overclaimed: int
    underclaimed: int
    faults: tuple[str, ...]

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
    source_sha256: str | None,
    settings: Mapping[str, Mapping[str, Any]],
) -> Verification:
    """Compare a claim with a ledger of some of its images; the other parameters are as for :func:`make_claim`."""
    faults = differences(claim, model=model, data_digest=data_digest, source_sha256=source_sha256, settings=settings)
    right, standing = (_flags(claim[key], claim["images"]) for key in ("right", "standing"))
    over = under = 0
    for image, label, prediction, stands in zip(
        ledger.rows["image"], ledger.rows["label"], ledger.rows["prediction"], ledger.standing, strict=True
    ):
        over += (right[image] and label != prediction) or (standing[image] and not stands)
        under += (not right[image] and label == prediction) or (not standing[image] and stands)
    return Verification(len(ledger), over, under, faults)


def differences(
    claim: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    data_digest: str,
    source_sha256: str | None,
    settings: Mapping[str, Mapping[str, Any]],
) -> tuple[str, ...]:
    """What is another model, other images or another attack than is claimed, which no image need be judged to see."""
    faults = [
        f"{what} has SHA-256 {(found or 'none')[:12]}, claimed is {(claimed or 'none')[:12]}"
        for what, claimed, found in (
            ("the model", claim["model"]["sha256"], model["sha256"]),
            ("the data", claim["data"]["digest"], data_digest),
            ("the model that transfer names", claim["source_sha256"], source_sha256),
        )
        if found != claimed
    ]
    if (architecture := claim["model"]["architecture"]) != model["architecture"]:
        faults.append(f"the architecture is {model['architecture']}, claimed is {architecture}")
    for name, attack in claim["attacks"].items():
        if attack["settings"] != settings[name]:
            faults.append(f"{name} has the settings {settings[name]}, claimed are {attack['settings']}")
    return tuple(faults)


def _digits(flags: Sequence[bool]) -> str:
    padded = [*flags, *[False] * (-len(flags) % 4)]
    return "".join(f"{int(''.join('01'[flag] for flag in padded[i : i + 4]), 2):x}" for i in range(0, len(padded), 4))


def _flags(digits: str, count: int) -> list[bool]:
    bits = "".join(f"{int(digit, 16):04b}" for digit in digits)
    return [bit == "1" for bit in bits[:count]]
