from __future__ import annotations

import pytest

from distsens.errors import InputError
from distsens.storage import RUN_FILE, Place, RunRecord, read_run, write_json, write_run

RECORD = RunRecord({"name": "mine", "threat": {"eps": 0.1}, "data": {"augment": ["crop"]}}, "abc")


def test_a_record_is_read_as_it_was_written(place: Place) -> None:
    write_run(place, RECORD)
    assert place.keys() == [RUN_FILE]
    assert read_run(place) == RECORD


def test_a_place_without_a_run_has_no_record(place: Place) -> None:
    with pytest.raises(FileNotFoundError):
        read_run(place)


def test_a_damaged_record_is_refused(place: Place) -> None:
    write_run(place, RECORD)
    place.put(RUN_FILE, place.get(RUN_FILE)[:-5])
    with pytest.raises(InputError, match=r"its run\.json is damaged: "):
        read_run(place)


@pytest.mark.parametrize("document", [{"format": 99}, {"format": 1}, [], {}])
def test_a_record_of_another_format_is_refused(place: Place, document: object) -> None:
    write_json(place, RUN_FILE, document)
    with pytest.raises(InputError, match=r"its run\.json is not of this version's format \(1\)"):
        read_run(place)
