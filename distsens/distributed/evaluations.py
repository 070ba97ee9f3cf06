"""Evaluations in storage: a folder each, with a ledger for each shard that is done, and which of them are counted."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import Field

from distsens.data import SEVERITIES
from distsens.distributed.places import followed, named_document
from distsens.errors import InputError, renamed
from distsens.evaluation import Check, Ledger, absolute_address
from distsens.evaluation.ledger import ledger_columns
from distsens.examination import Examination
from distsens.storage import Place, check_digest, open_place, place_name, unseal, with_digest, write_json
from distsens.strict_json import Document, load_as, load_json
from distsens.suite import attack_names, families

EVALUATION_FILE = "evaluation.json"
_CHECKS_FILE = "checks.json"
_FORMAT = 2
_SHARD = re.compile(r"ledger/shard-(\d{5,})\.parquet")


class _Stored(Document):
    """What ``evaluation.json`` holds.

    In format 1 neither it nor the shards carry a digest; what was begun so goes on so.
    """

    format: Literal[1, 2]
    examination: dict[str, Any]
    mlflow_run_id: str
    model_sha256: str
    source_sha256: str | None
    data_digest: str
    seconds: float = Field(0.0, ge=0)


class _Check(Document):
    name: str
    passed: bool
    values: dict[str, float]
    sentence: str


class _Checks(Document):
    checks: list[_Check]


class _About(Document):
    """What a shard says of itself, beside its images: its number, and of which evaluation it is."""

    evaluation: str
    shard: int
    images: list[int]


@dataclass(frozen=True)
class Shards:
    """The ledgers in a folder.

    done : by number, those that are counted.
    left_out : by key, why the others are not; their images are judged again.
    unsealed : how many of those counted carry no digest, as an earlier version wrote them.
    """

    done: dict[int, Ledger]
    left_out: dict[str, str]
    unsealed: int = 0


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation in storage: a folder with ``evaluation.json`` and a ledger for each shard that is done.

    seconds : that it took until the newest of these shards, in all sessions.
    format : in which it was begun; see `_Stored`.
    """

    name: str
    place: Place
    examination: Examination
    mlflow_run_id: str
    model_sha256: str
    source_sha256: str | None
    data_digest: str
    seconds: float = 0.0
    format: int = _FORMAT

    @property
    def identity(self) -> str:
        """By which its shards are told from those of any other evaluation, wherever it was moved."""
        parts = [self.mlflow_run_id, self.model_sha256, self.source_sha256, self.data_digest]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def save(self) -> None:
        """Write ``evaluation.json``, which makes the evaluation resumable."""
        document = {
            "format": self.format,
            "examination": self.examination.model_dump(mode="json"),
            "mlflow_run_id": self.mlflow_run_id,
            "model_sha256": self.model_sha256,
            "source_sha256": self.source_sha256,
            "data_digest": self.data_digest,
            "seconds": self.seconds,
        }
        write_json(self.place, EVALUATION_FILE, document if self.format == 1 else with_digest(document))

    def shards(self, labels: Mapping[int, int]) -> Shards:
        """The ledgers of the shards that are done, of images whose labels are given by their numbers.

        One is counted if its digest is right, and if it is the shard of this evaluation that its name says. In an
        evaluation of an earlier version, whose shards carry no digest, one must hold what this evaluation asks, of its
        images with their labels, of which none is in another.
        """
        sealed: dict[int, Ledger] = {}
        older: dict[int, Ledger] = {}
        left_out: dict[str, str] = {}
        for key in filter(_SHARD.fullmatch, self.place.keys("ledger")):
            number = int(key[len("ledger/shard-") : -len(".parquet")])
            try:
                content = self.place.get(key)
            except OSError as error:
                raise InputError("resume", self.name, f"its {key} cannot be read: {error}") from None
            try:
                about, ledger = self._read(content, number, labels)
            except ValueError as error:
                left_out[key] = str(error)
            else:
                (older if about is None else sealed)[number] = ledger
        counted = [int(image) for ledger in (*sealed.values(), *older.values()) for image in ledger.rows["image"]]
        twice = {image for image, times in Counter(counted).items() if times > 1}
        for found in (sealed, older):
            for number in [one for one, ledger in found.items() if twice & set(ledger.rows["image"])]:
                del found[number]
                left_out[_key(number)] = "another shard has images of it, too"
        return Shards(dict(sorted({**sealed, **older}.items())), left_out, len(older))

    def _read(self, content: bytes, number: int, labels: Mapping[int, int]) -> tuple[_About | None, Ledger]:
        """What a shard says of itself, and its ledger; `ValueError` if it is not to be counted."""
        table = unseal(content, nullable=True)
        ledger = Ledger(table.rows)
        if table.about is None and self.format != 1:
            raise ValueError("it carries no digest")
        about = None if table.about is None else load_as(_About, table.about)
        if about is not None and about.evaluation != self.identity:
            raise ValueError("it is of another evaluation")
        if about is not None and about.shard != number:
            raise ValueError(f"it is shard {about.shard}")
        if (fault := ledger.fault(_columns(self.examination), labels)) is not None:
            raise ValueError(fault)
        if about is not None and about.images != ledger.rows["image"].tolist():
            raise ValueError("it is about other images than it says")
        return about, ledger

    def set_aside(self, shards: Shards) -> Iterator[str]:
        """Move the shards that are not counted out of the way; a line for each, and for those without a digest."""
        for key, reason in shards.left_out.items():
            content = self.place.get(key)
            name = key.rpartition("/")[2].removesuffix(".parquet")
            aside = f"left-out/{name}-{hashlib.sha256(content).hexdigest()[:8]}.parquet"
            self.place.put(aside, content)
            self.place.delete(key)
            yield f"{key} is not counted, its images are judged again: {reason}; it is kept as {aside}"
        if shards.unsealed:
            yield (
                f"{shards.unsealed} shards of an earlier version carry no digest: what they say was compared with the "
                "images and the attacks, and cannot be checked further"
            )

    def checks(self) -> list[Check] | None:
        """The checks for gradient masking, if they have been made."""
        if _CHECKS_FILE not in self.place.keys(_CHECKS_FILE):
            return None
        try:
            document = load_json(self.place.get(_CHECKS_FILE))
            if isinstance(document, list) and self.format == 1:
                document = {"checks": document}
            else:
                check_digest(document)
            return [Check(**one.model_dump()) for one in load_as(_Checks, document).checks]
        except (OSError, ValueError) as error:
            raise InputError("resume", self.name, f"its {_CHECKS_FILE} is damaged: {error}") from None

    def keep_checks(self, checks: Sequence[Check]) -> None:
        """Store the checks for gradient masking."""
        write_json(self.place, _CHECKS_FILE, with_digest({"checks": [asdict(check) for check in checks]}))

    def keep(self, number: int, ledger: Ledger, seconds: float) -> None:
        """Store a shard's ledger, and what the evaluation has taken until now."""
        self.place.put(_key(number), ledger.to_parquet(self._about(number, ledger)))
        replace(self, seconds=seconds).save()

    def keep_whole(self, ledger: Ledger) -> None:
        """Store the ledger of all images."""
        self.place.put("ledger.parquet", ledger.to_parquet({"evaluation": self.identity}))

    def _about(self, number: int, ledger: Ledger) -> dict[str, Any]:
        return {"evaluation": self.identity, "shard": number, "images": ledger.rows["image"].tolist()}


def _key(number: int) -> str:
    return f"ledger/shard-{number:05d}.parquet"


def _columns(examination: Examination) -> list[str]:
    return ledger_columns(
        attack_names(examination.attacks),
        examination.eps_curve,
        [(family, severity) for family in families(examination.corruptions) for severity in SEVERITIES],
    )


def find_evaluation(name: str, storage_url: str) -> StoredEvaluation:
    """The evaluation of that name in the storage, or the one at that path; its places are those where it was found."""
    with renamed({"storage.path": "resume"} if "/" in name else {}):
        place = open_place(name) if "/" in name else open_place(storage_url).child(name)
    try:
        document = named_document(place, EVALUATION_FILE, name, "an evaluation")
        if not isinstance(document, dict) or document.get("format") not in (1, _FORMAT):
            raise InputError("resume", name, f"its {EVALUATION_FILE} is not of this version's format ({_FORMAT})")
        if document["format"] != 1 or "sha256" in document:
            check_digest(document)
        stored = load_as(_Stored, document)
        examination = Examination.of_document(followed(stored.examination, place, stored.mlflow_run_id))
    except ValueError as error:
        if isinstance(error, InputError) and error.field == "resume":
            raise
        raise InputError("resume", name, f"its {EVALUATION_FILE} is damaged: {error}") from None
    return StoredEvaluation(
        place_name(place.url),
        place,
        examination,
        stored.mlflow_run_id,
        stored.model_sha256,
        stored.source_sha256,
        stored.data_digest,
        stored.seconds,
        stored.format,
    )


def check_further(begun: Sequence[StoredEvaluation], models: Sequence[str]) -> None:
    """Refuse evaluations that are named twice, and models of which one of them is."""
    places = [stored.place.url for stored in begun]
    for number, stored in enumerate(begun):
        if places[number] in places[:number]:
            raise InputError("resume", stored.name, "name each evaluation once")
    judged = {stored.examination.model.address for stored in begun}
    for model in models:
        if absolute_address(model) in judged:
            raise InputError("model", model, "leave it out: an evaluation is resumed with the model that it began with")
