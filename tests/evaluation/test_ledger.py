from __future__ import annotations

import pandas as pd
import pytest

from distsens.evaluation import Ledger
from distsens.evaluation.ledger import broken_column, corruption_column, curve_column, evaluations_column


def ledger(*, every_attack: bool = False) -> Ledger:
    """Six images: wrong as it is, broken by pgd, broken by square, three that stand (of classes 0, 0, 1, 1, 1, 1)."""
    missing = True if every_attack else None
    rows = pd.DataFrame(
        {
            "image": pd.array([0, 1, 2, 3, 4, 5], dtype="Int64"),
            "label": pd.array([0, 0, 1, 1, 1, 1], dtype="Int64"),
            "prediction": pd.array([1, 0, 1, 1, 1, 1], dtype="Int64"),
            "broken_by": pd.array(["clean", "pgd", "square", None, None, None], dtype="string"),
            "adversarial_prediction": pd.array([None, 1, 0, None, None, None], dtype="Int64"),
            "distance": pd.array([None, 0.1, 0.2, None, None, None], dtype="Float64"),
            "evaluations": pd.array([1, 5, 20, 30, 30, 30], dtype="Int64"),
            "violations": pd.array([0, 0, 1, 0, 0, 0], dtype="Int64"),
            broken_column("pgd"): pd.array([None, True, False, False, False, False], dtype="boolean"),
            evaluations_column("pgd"): pd.array([0, 4, 9, 9, 9, 9], dtype="Int64"),
            broken_column("square"): pd.array([None, missing, True, False, False, False], dtype="boolean"),
            evaluations_column("square"): pd.array([0, 0, 10, 20, 20, 20], dtype="Int64"),
            curve_column(0.1): pd.array([False, True, True, True, True, True], dtype="boolean"),
            curve_column(8 / 255): pd.array([False, False, True, True, True, True], dtype="boolean"),
            corruption_column("fog", 1): pd.array([True, True, True, True, True, False], dtype="boolean"),
            corruption_column("fog", 2): pd.array([False, False, True, True, True, False], dtype="boolean"),
        }
    )
    return Ledger(rows)


def test_accuracies_are_counted_from_the_rows() -> None:
    found = ledger()
    assert (found.clean.count, found.robust.count, len(found)) == (5, 3, 6)
    assert found.attacks == ["pgd", "square"]
    assert {name: value.count for name, value in found.after_attack.items()} == {"pgd": 4, "square": 3}
    assert found.spent == {"pgd": 40, "square": 70}
    assert found.violations == 1


def test_an_attack_that_spared_images_says_nothing_on_its_own() -> None:
    assert {name: value.count for name, value in ledger().under_attack.items()} == {"pgd": 4}
    assert {name: value.count for name, value in ledger(every_attack=True).under_attack.items()} == {
        "pgd": 4,
        "square": 3,
    }


def test_classes_have_accuracies_of_their_own() -> None:
    counts = {label: (clean.count, robust.count, clean.total) for label, (clean, robust) in ledger().classes.items()}
    assert counts == {0: (1, 0, 2), 1: (4, 3, 4)}


def test_curve_and_corruptions_are_read_back_by_radius_and_family() -> None:
    found = ledger()
    assert list(found.curve) == [pytest.approx(0.1), pytest.approx(8 / 255, rel=1e-5)]
    assert [value.count for value in found.curve.values()] == [5, 4]
    assert found.corruption_errors == {"fog": [pytest.approx(1 / 6), pytest.approx(1 / 2)]}


def test_parquet_keeps_every_value_and_what_is_missing() -> None:
    found = ledger()
    pd.testing.assert_frame_equal(Ledger.from_parquet(found.to_parquet()).rows, found.rows)


def test_parts_are_joined_in_the_order_of_their_images() -> None:
    whole = ledger()
    parts = [Ledger(whole.rows.iloc[3:]), Ledger(whole.rows.iloc[:3])]
    pd.testing.assert_frame_equal(Ledger.join(parts).rows, whole.rows)
    assert Ledger.join(parts).robust.count == 3
