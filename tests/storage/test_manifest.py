import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsens.storage import FileRecord, Manifest
from distsens.storage.manifest import decode, encode

records = st.builds(FileRecord.of, st.binary())
manifests = st.builds(
    Manifest,
    epoch=st.integers(min_value=0),
    experiment=st.text(),
    metrics=st.dictionaries(st.text(), st.floats(allow_nan=False)),
    files=st.dictionaries(st.text(), records),
    created=st.text(),
)
MANIFEST = Manifest(
    3, "digest", {"robust": 0.5}, {"model": FileRecord.of(b"weights")}, "2026-01-02T03:04:05.000006+00:00"
)


@given(manifests)
def test_a_manifest_survives_strict_json(manifest: Manifest) -> None:
    text = json.dumps(encode(manifest), allow_nan=False)
    assert decode(json.loads(text)) == manifest


def test_a_metric_that_is_not_a_number_stays_one() -> None:
    metrics = decode(encode(Manifest(0, "", {"loss": math.nan}, {}, ""))).metrics
    assert math.isnan(metrics["loss"])


@given(st.binary())
def test_a_record_holds_size_and_sha256(data: bytes) -> None:
    record = FileRecord.of(data)
    assert (record.size, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert record.fault(data) is None


@given(st.binary(), st.binary())
def test_a_record_finds_fault_with_any_other_content(data: bytes, other: bytes) -> None:
    assert (FileRecord.of(data).fault(other) is None) == (data == other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 4}, "its own SHA-256"),
        ({"experiment": "another"}, "its own SHA-256"),
        ({"metrics": {"robust": 0.75}}, "its own SHA-256"),
        ({"files": {}}, "its own SHA-256"),
        ({"sha256": "0" * 64}, "its own SHA-256"),
        ({"extra": None}, "its own SHA-256"),
        ({"format": 1}, "format 1, this version reads format 2"),
    ],
)
def test_an_altered_manifest_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode({**encode(MANIFEST), **change})


@pytest.mark.parametrize("document", [None, 1, "text", [], {}, {"epoch": 3}])
def test_another_document_is_no_manifest(document: Any) -> None:
    with pytest.raises(ValueError, match="not a manifest"):
        decode(document)
