from pathlib import Path

import pytest

from distsens.storage import open_place, read_json, write_json


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    place = open_place(str(tmp_path))
    document = {"name": "ε = 8/255", "epochs": [1, 2.5, None, True], "nested": {"a": {}}}
    write_json(place, "run.json", document)
    assert read_json(place, "run.json") == document
    assert place.get("run.json").endswith(b"}\n")


def test_a_document_that_json_cannot_hold_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    place = open_place(str(tmp_path))
    write_json(place, "run.json", 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(place, "run.json", float("nan"))
    assert read_json(place, "run.json") == 1


def test_what_is_absent_or_no_json_is_an_error(tmp_path: Path) -> None:
    place = open_place(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        read_json(place, "run.json")
    place.put("run.json", b'{"cut": ')
    with pytest.raises(ValueError, match="Expecting value"):
        read_json(place, "run.json")
