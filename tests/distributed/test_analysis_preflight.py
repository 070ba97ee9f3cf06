"""What an analysis calls its models, and that what a training wrote down of them may be missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from distsens.distributed.analysis_preflight import names_of, read_histories
from distsens.evaluation import Subject
from distsens.evaluation.subject import Architecture


def subject(name: str, address: str, run: str | None = None) -> Subject:
    return Subject(name, address, Architecture("small_cnn"), b"", run=run)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            [
                ("mnist-sns-20260102-030405-abcd", "runs/mnist-sns-20260102-030405-abcd"),
                ("mnist-pgd_at-20260102-030405-abcd", "runs/mnist-pgd_at-20260102-030405-abcd"),
            ],
            ("mnist-sns", "mnist-pgd_at"),
        ),
        ([("r", "runs/r#best"), ("r", "runs/r#last")], ("r-best", "r-last")),
        ([("net (1)", "net (1).pt"), ("net", "net.pt")], ("net-1", "net")),
        (
            [("r", "/a/checkpoints/epoch-0003"), ("r", "/b/checkpoints/epoch-0003")],
            ("a-checkpoints-epoch-0003", "b-checkpoints-epoch-0003"),
        ),
        ([("r", "a+"), ("r", "a++")], ("model 1", "model 2")),
    ],
)
def test_models_are_named_shortly_apart_and_by_what_mlflow_takes(
    given: list[tuple[str, str]], expected: tuple[str, ...]
) -> None:
    assert names_of([subject(*one) for one in given]) == expected


def test_a_history_that_cannot_be_read_is_missed_and_said(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    (run / "sensitivity").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "sensitivity" / "epoch-0000.parquet").write_bytes(b"no parquet")
    found, faults = read_histories([subject("r", str(run), run="r"), subject("alone", "net.pt")])
    assert found == (None, None)
    (fault,) = faults
    assert fault.startswith("what the training of r wrote down of its neurons is unreadable: ")
