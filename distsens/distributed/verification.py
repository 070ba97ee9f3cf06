"""How a claim is judged anew: by the claim's own examination, on images that nobody could foresee."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distsens.errors import InputError
from distsens.evaluation import check_claim
from distsens.examination import Examination
from distsens.experiment import merge
from distsens.strict_json import load_json_file
from distsens.suite import attack_names

# Where things are and how they are shared out; all else decides the verdicts, and so is the claim's to say.
_MAY_CHANGE = ("model", "transfer", "shard", "batch_size", "workers", "storage", "tracking", "examples")
_MAY_CHANGE_OF_DATA = ("root", "download", "limit")
# The places of who made it, whose code is not run either; and what the claim does not speak of.
_LEFT_OUT = (
    *("model", "storage", "tracking", "workers", "examples"),
    *("eps_curve", "corruptions", "baseline", "diagnostics"),
)


def read_claim(path: str) -> dict[str, Any]:
    """The claim in a file, checked as far as it can be without judging an image.

    Raises
    ------
    InputError : the file holds no claim, or one that contradicts itself.
    """
    try:
        document = load_json_file(Path(path))
    except (OSError, ValueError) as error:
        raise InputError("verify", path, f"cannot be read as JSON: {error}") from None
    claim = check_claim(document, path)
    try:
        stated, examined = tuple(claim["attacks"]), attack_names(_examination(claim).attacks)
    except InputError as error:
        raise InputError("verify", path, f"its examination is none of this version: {error}") from None
    if stated != examined:
        raise InputError("verify", path, f"contradicts itself: attacks are {stated}, and its examination's {examined}")
    return claim


def fields_to_verify(claim: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the examination that judges a claim anew, as who made it did, but in other places.

    With ``data.limit`` in the changes that many of the claim's images are drawn at random, from the system's source of
    randomness: whoever knew them beforehand would need to be honest on them alone.

    Raises
    ------
    InputError : a change would judge something else than what is claimed, or more images.
    """
    _check_changes(changes)
    fields = _examination(claim).model_dump(mode="json", exclude=set(_LEFT_OUT))
    fields = merge(merge(fields, {"data": {"root": None, "download": False}}), changes)
    count = claim["images"]
    wanted = Examination.parse({"data": {"limit": changes.get("data", {}).get("limit")}}).data.limit or count
    if wanted > count:
        raise InputError("data.limit", wanted, f"the claim is about {count} images")
    drawn = sorted(random.SystemRandom().sample(range(count), wanted)) if wanted < count else []
    return merge(fields, {"data": {"limit": count, "images": drawn}})


def check_judges_claim(claim: Mapping[str, Any], examination: Examination, evaluation: str) -> None:
    """Refuse an evaluation, begun before, that does not judge what is claimed."""
    claimed = _examination(claim)
    for name in ("attacks", "threat", "pgd", "seed", "every_attack"):
        if getattr(claimed, name) != getattr(examination, name):
            raise InputError("resume", evaluation, f"its {name} is not what is claimed")
    if examination.data.limit != claim["images"]:
        raise InputError("resume", evaluation, f"the claim is about {claim['images']} images")
    for name in ("name", "split", "choice", "image_size"):
        if getattr(claimed.data, name) != getattr(examination.data, name):
            raise InputError("resume", evaluation, f"its data.{name} is not what is claimed")


def _examination(claim: Mapping[str, Any]) -> Examination:
    return Examination.of_document({key: value for key, value in claim["examination"].items() if key not in _LEFT_OUT})


def _check_changes(changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping) and name not in _MAY_CHANGE:
            odd = [key for key in value if name != "data" or key not in _MAY_CHANGE_OF_DATA]
            if not odd:
                continue
            name, value = f"{name}.{odd[0]}", value[odd[0]]
        if name not in _MAY_CHANGE:
            raise InputError(name, value, "leave it out: a claim is judged anew as it says itself")
