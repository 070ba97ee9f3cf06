from __future__ import annotations

from typing import Any

import pytest

from distsens.errors import InputError
from distsens.examination import Examination
from distsens.experiment import Experiment

TRAINING = Experiment.parse({"data": {"name": "mnist", "root": "/sets"}, "threat": {"norm": "l2", "eps": 1.5}})


def test_what_is_left_out_is_taken_from_the_training() -> None:
    found = Examination.parse({"threat": {"eps": "1/2"}}).completed(TRAINING)
    assert (found.data.name, str(found.data.root), found.data.split) == ("mnist", "/sets", "test")
    assert (found.threat.norm, found.threat.eps) == ("l2", 0.5)


@pytest.mark.parametrize(
    ("name", "root", "size"), [(None, "/mine", 64), ("folder", "/mine", 64), ("cifar10", None, None)]
)
def test_another_data_set_is_not_looked_for_where_the_trainings_is(
    name: str | None, root: str | None, size: int | None
) -> None:
    training = Experiment.parse({"data": {"name": "folder", "root": "/mine", "image_size": 64}})
    found = Examination.parse({"data": {"name": name}}).completed(training).data
    assert found.name == (name or "folder")
    assert (found.root and str(found.root), found.image_size) == (root, size)


def test_without_a_training_nothing_is_filled_in() -> None:
    found = Examination.parse({})
    assert found.completed(None) == found
    assert found.threat.norm is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"threat": {"eps": 0}}, "threat.eps: got 0"),
        ({"threat": {"norm": "l0"}}, "threat.norm: got 'l0'"),
        ({"attacks": []}, "attacks"),
        ({"data": {"splits": "test"}}, "data.splits"),
        ({"data": {"split": "dev"}}, "data.split"),
        ({"shard": 0}, "shard"),
        ({"wrokers": {}}, "wrokers"),
    ],
)
def test_wrong_fields_are_refused_by_name(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as refused:
        Examination.parse(fields)
    assert says in str(refused.value)


def test_the_digest_goes_by_what_decides_the_verdicts() -> None:
    digest = Examination.parse({}).digest()
    assert (
        Examination.parse({"workers": {"num": 7}, "storage": {"path": "/x"}, "data": {"root": "/y"}}).digest() == digest
    )
    assert Examination.parse({"seed": 1}).digest() != digest
    assert Examination.parse({"batch_size": 7}).digest() != digest, "batches decide rounding"
    assert Examination.parse({"shard": 7}).digest() == digest, "other workers go on with other shards"
    assert Examination.parse({"attacks": ["square"]}).digest() != digest
