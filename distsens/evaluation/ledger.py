"""The ledger of an evaluation: one row an image, from which every number is counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distsens.errors import InputError
from distsens.evaluation.intervals import wilson
from distsens.storage import seal, unseal

if TYPE_CHECKING:
    import pandas as pd

CLEAN = "clean"
_BROKEN = "broken/"
_EVALUATIONS = "evaluations/"
_CURVE = "eps/"
_CORRUPTION = "corruption/"
_MAY_MISS = ("broken_by", "adversarial_prediction", "distance")


def broken_column(attack: str) -> str:
    """Column of an attack's verdicts: misclassified under it (true), not (false), not attacked by it (missing)."""
    return _BROKEN + attack


def evaluations_column(attack: str) -> str:
    """Column of how often an attack showed the image to the classifier."""
    return _EVALUATIONS + attack


def curve_column(eps: float) -> str:
    """Column of verdicts at a radius of the eps curve: still right (true) or not (false)."""
    return f"{_CURVE}{eps:.6g}"


def corruption_column(family: str, severity: int) -> str:
    """Column of verdicts under a common corruption: right (true) or not (false)."""
    return f"{_CORRUPTION}{family}/{severity}"


@dataclass(frozen=True)
class Proportion:
    """``count`` of ``total`` images, with Wilson's 95 % interval of the proportion."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """The proportion, in [0, 1]."""
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval at 95 %."""
        return wilson(self.count, self.total)


@dataclass(frozen=True, eq=False)
class Ledger:
    """What became of every image.

    rows : sorted by image, with the columns

        ``image``, ``label``, ``prediction`` : its number in the split, its class, and what it is taken for as it is.
        ``broken_by`` : the first attack whose example is misclassified; ``clean`` if that needs none; missing if none.
        ``adversarial_prediction``, ``distance`` : of that example, the distance in the norm of the threat.
        ``evaluations`` : how often the image, changed or not, was shown to the classifier by all attacks.
        ``violations`` : attacks whose example lay outside the ball or [0, 1], which did not count, or was no number.
        ``not_finite`` : whether logits of it, as it is, attacked or corrupted, or pixels of an example were NaN or
            infinite. Such an image is taken for class -1, so that it is misclassified.

    and those that the ``..._column`` functions name.
    """

    rows: pd.DataFrame

    @staticmethod
    def of(columns: Mapping[str, Sequence[object]]) -> Ledger:
        """The ledger with these columns; None is what is missing."""
        import pandas as pd  # Only where rows are made: what trains and measures does without.

        return Ledger(pd.DataFrame({name: pd.array(values, dtype=_type(name)) for name, values in columns.items()}))

    @staticmethod
    def join(parts: Sequence[Ledger]) -> Ledger:
        """The ledger of all images of several, of which none may be in two: `InputError`."""
        import pandas as pd

        rows = pd.concat([part.rows for part in parts], ignore_index=True)
        if (twice := rows["image"].duplicated()).any():
            raise InputError("ledger", int(rows["image"][twice].iloc[0]), "this image is in two of its parts")
        return Ledger(rows.sort_values("image", ignore_index=True))

    @staticmethod
    def from_parquet(content: bytes) -> Ledger:
        """Read what :meth:`to_parquet` wrote; `ValueError` if it is damaged."""
        return Ledger(unseal(content, nullable=True).rows)

    def to_parquet(self, about: Mapping[str, object] | None = None) -> bytes:
        """A Parquet file of the rows, which carries its digest and what it is about; see `distsens.storage.seal`."""
        return seal(self.rows, about or {})

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def standing(self) -> pd.Series[bool]:
        """Per row, whether the image is classified right and no attack broke it."""
        return self.rows["broken_by"].isna()

    @property
    def clean(self) -> Proportion:
        """Images classified right as they are."""
        return self._proportion(self.rows["broken_by"].fillna("") != CLEAN)

    @property
    def robust(self) -> Proportion:
        """Images that no attack broke: the worst case over attacks."""
        return self._proportion(self.standing)

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks, in order."""
        return [name.removeprefix(_BROKEN) for name in self.rows if name.startswith(_BROKEN)]

    @property
    def left(self) -> dict[str, pd.Series[bool]]:
        """Per row, whether the image still stands after each attack and those before it."""
        broken = self.rows["broken_by"].fillna("")
        fallen, left = {CLEAN}, {}
        for attack in self.attacks:
            fallen.add(attack)
            left[attack] = ~broken.isin(fallen)
        return left

    @property
    def after_attack(self) -> dict[str, Proportion]:
        """Images still standing after each attack and those before it."""
        return {attack: self._proportion(left) for attack, left in self.left.items()}

    @property
    def under_attack(self) -> dict[str, Proportion]:
        """Robust accuracy under each attack alone, of those that were run on every image classified right."""
        clean = self.rows["broken_by"].fillna("") != CLEAN
        found = {}
        for attack in self.attacks:
            broken = self.rows[broken_column(attack)]
            if not (broken.isna() & clean).any():
                found[attack] = self._proportion(clean & ~broken.fillna(True))
        return found

    @property
    def spent(self) -> dict[str, int]:
        """Evaluations spent by each attack, over all images."""
        return {attack: int(self.rows[evaluations_column(attack)].sum()) for attack in self.attacks}

    @property
    def classes(self) -> dict[int, tuple[Proportion, Proportion]]:
        """Clean and robust accuracy on the images of each class."""
        labels = self.rows["label"]
        parts = {int(label): Ledger(self.rows[labels == label]) for label in sorted(labels.unique())}
        return {label: (part.clean, part.robust) for label, part in parts.items()}

    @property
    def curve(self) -> dict[float, Proportion]:
        """Robust accuracy by radius."""
        return {
            float(name.removeprefix(_CURVE)): self._proportion(self.rows[name])
            for name in self.rows
            if name.startswith(_CURVE)
        }

    @property
    def corruption_errors(self) -> dict[str, list[float]]:
        """Part of the images misclassified under each family of corruptions, by severity."""
        errors: dict[str, list[float]] = {}
        for name in self.rows:
            if name.startswith(_CORRUPTION):
                family = name.removeprefix(_CORRUPTION).partition("/")[0]
                errors.setdefault(family, []).append(1.0 - float(self.rows[name].mean()))
        return errors

    @property
    def violations(self) -> int:
        """Examples that lay outside the ball or [0, 1], which did not count."""
        return int(self.rows["violations"].sum())

    @property
    def not_finite(self) -> int:
        """Images of which some logits, as they are, attacked or corrupted, were NaN or infinite: misclassified."""
        found = self.rows.get("not_finite")  # a shard that was stored before there was such a column has none
        return 0 if found is None else int(found.sum())

    def fault(self, columns: Sequence[str], labels: Mapping[int, int]) -> str | None:
        """What shows that this is no ledger with these columns of images with these labels; None if nothing.

        A ledger of an earlier version carries no digest, and may lack ``not_finite``.
        """
        rows = self.rows
        if odd := {*rows} ^ {*columns} - ({"not_finite"} - {*rows}):
            return f"it should have, or not have, the columns {', '.join(sorted(odd))}"
        for name in rows:
            if str(rows[name].dtype) != _type(name):
                return f"its column {name} is {rows[name].dtype}"
            if name not in _MAY_MISS and not name.startswith(_BROKEN) and rows[name].isna().any():
                return f"its column {name} misses values"
        images = rows["image"].tolist()
        if len({*images}) != len(images):
            return "it has an image twice"
        if strange := [image for image in images if image not in labels]:
            return f"it is about image {strange[0]}, which is not judged"
        if [labels[image] for image in images] != rows["label"].tolist():
            return "its labels are not those of its images"
        by = rows["broken_by"]
        if not {*by.dropna()} <= {CLEAN, *self.attacks}:
            return "it is broken by attacks that it does not have"
        if ((rows["prediction"] != rows["label"]) != (by.fillna("") == CLEAN)).any():
            return "its predictions are not those that it counts"
        for attack in self.attacks:
            broken = rows[broken_column(attack)].fillna(False)
            if ((by.fillna("") == attack) & ~broken).any() or (by.isna() & broken).any():
                return f"its verdicts under {attack} are not those that it counts"
        return None

    def _proportion(self, which: pd.Series[bool]) -> Proportion:
        return Proportion(int(which.sum()), len(which))


def ledger_columns(
    attacks: Sequence[str], curve: Sequence[float] = (), corruptions: Sequence[tuple[str, int]] = ()
) -> list[str]:
    """The columns of the ledger of a judgement by attacks, radii of the eps curve, and families with severities."""
    return [
        *("image", "label", "prediction", "broken_by", "adversarial_prediction", "distance"),
        *("evaluations", "violations", "not_finite"),
        *(column(attack) for attack in attacks for column in (broken_column, evaluations_column)),
        *map(curve_column, curve),
        *(corruption_column(*one) for one in corruptions),
    ]


def _type(column: str) -> str:
    """The type of a column's values, of which some may be missing."""
    if column == "not_finite" or column.startswith((_BROKEN, _CURVE, _CORRUPTION)):
        return "boolean"
    return {"broken_by": "string", "distance": "Float64"}.get(column, "Int64")
