"""Whether a model is the one that a claim is about: by what it computes, and not by the name of a file or factory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distsens.evaluation.fingerprint import Fingerprint

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Compared:
    """``fault``, by which it is another model; ``notices``, what is different and changes nothing that is computed."""

    fault: str | None = None
    notices: tuple[str, ...] = ()


def compare_models(what: str, claimed: Mapping[str, Any] | None, found: Mapping[str, Any] | None) -> Compared:
    """Compare two models that are described as claims do: ``sha256``, ``architecture``, ``computes`` (a Fingerprint).

    A claim of an earlier version has no ``computes``, or ``sha256`` alone: it must be the same file, normalised alike.
    """
    if claimed is None or found is None:
        one, other = ("none" if one is None else one["sha256"][:12] for one in (found, claimed))
        return Compared(None if claimed is found else f"{what} has SHA-256 {one}, claimed is {other}")
    notices = _notices(what, claimed, found)
    if claimed.get("computes") is None:
        return Compared(_fault_of_file(what, claimed, found), notices)
    return _compare_functions(what, claimed, found, notices)


def _notices(what: str, claimed: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, ...]:
    theirs, ours = claimed.get("architecture"), found["architecture"]
    if theirs is None or all(theirs.get(key, ours.get(key)) == ours.get(key) for key in ("name", "small_images")):
        return ()
    one, other = (
        str(named.get("name")) + (" for small images" if named.get("small_images") else "") for named in (ours, theirs)
    )
    return (f"{what} is built by {one}, and was by {other} when it was claimed",)


def _fault_of_file(what: str, claimed: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    if claimed["sha256"] != found["sha256"]:
        return f"{what} has SHA-256 {found['sha256'][:12]}, claimed is {claimed['sha256'][:12]}"
    return _fault_of_normalisation(what, claimed, found)


def _fault_of_normalisation(what: str, claimed: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    if claimed.get("architecture") is None:
        return None
    (their_mean, their_std), (our_mean, our_std) = _normalisation(claimed), _normalisation(found)
    if _same(their_mean, our_mean) and _same(their_std, our_std):
        return None
    return (
        f"{what} is normalised by mean {our_mean} and std {our_std}, claimed is mean {their_mean} and std {their_std}"
    )


def _normalisation(model: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    stated = model["architecture"]
    return list(stated.get("mean", [0.0])), list(stated.get("std", [1.0]))


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    """One number stands for all channels; a file of weights holds them as float32."""
    if len(one) != len(other) and 1 not in (len(one), len(other)):
        return False
    count = max(len(one), len(other))
    pairs = zip(*(values * count if len(values) == 1 else values for values in (list(one), list(other))), strict=True)
    return all(math.isclose(a, b, rel_tol=_ROUNDING, abs_tol=_ROUNDING) for a, b in pairs)


def _compare_functions(
    what: str, claimed: Mapping[str, Any], found: Mapping[str, Any], notices: tuple[str, ...]
) -> Compared:
    theirs, ours = (
        Fingerprint(one["computes"]["weights_sha256"], tuple(map(tuple, one["computes"]["logits"])))
        for one in (claimed, found)
    )
    same_values = theirs.weights_sha256 == ours.weights_sha256
    if theirs.agrees(ours):
        if not same_values:
            notices += (f"{what} has weights of other values than claimed, which compute the same",)
        return Compared(None, notices)
    difference = theirs.difference(ours)
    how = f"by up to {difference:.2g} of their range" if math.isfinite(difference) else "in number, or are none"
    differs = f"on fixed images its logits differ from those claimed {how}"
    reason = _fault_of_normalisation(what, claimed, found) or (
        f"{what} has the weights that are claimed in another network"
        if same_values
        else f"{what} has other weights: the SHA-256 of their values is {ours.weights_sha256[:12]}, claimed is "
        f"{theirs.weights_sha256[:12]}"
    )
    return Compared(f"{reason}; {differs}", notices)
