from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from distsens.experiment import Experiment, merge
from distsens.report import LiveView, PlainView, Summary, open_view, show_summary
from distsens.report.view import epoch_line
from distsens.training import EpochRecord, Progress

PROGRESS = Progress(2, 5, 20, images_per_second=1234.5, losses={"adversarial_ce": 1.5, "stabilizing": 0.25})
SUMMARY = Summary(
    status="finished",
    message=None,
    run="quickstart-1",
    storage="/runs/quickstart-1",
    published="/runs/models/quickstart-1",
    mlflow_uri="sqlite:///mlflow.db",
    mlflow_run_id="abc",
    mlflow_model=None,
    experiment=Experiment.parse({"test": {"restarts": 2}}).model_dump(mode="json"),
    epochs=3,
    ended_early=None,
    alarm=None,
    best_epoch=2,
    validation={"clean_accuracy": 0.9, "robust_accuracy": 0.6},
    test={"images": 360.0, "clean_accuracy": 0.91, "fgsm_accuracy": 0.705, "pgd_accuracy": 0.6125},
    sensitivity={"conv1": {"absolute": {"first": 0.03, "best": 0.01}, "relative": {"first": 0.3, "best": 0.1234}}},
    seconds=12.5,
    images_per_second=1234.5,
    gradient_evaluations_per_second=8641.5,
    attack_share=0.8,
    workers=2,
)


def log() -> tuple[Console, io.StringIO]:
    """A console that writes to a file, as in a log."""
    file = io.StringIO()
    return Console(file=file, width=60), file


def terminal() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=200, force_terminal=True), file


def words(file: io.StringIO) -> str:
    """What was written, without the terminal's control codes."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


def test_an_epoch_is_one_line(history: list[EpochRecord]) -> None:
    assert epoch_line(history[0], best=False) == "epoch   0  clean  10.0%  robust   5.0%  (untrained)"
    assert epoch_line(history[1], best=True) == (
        "epoch   1  clean  50.0%  robust  30.0%  loss 1.2500  1,234 images/s  attack 80% of a step  best"
    )
    assert epoch_line(history[2], best=False) == (
        "epoch   2  clean  90.0%  robust  61.2%  loss 0.6250  1,234 images/s  attack 80% of a step  sns 0.5"
    )


def test_a_log_gets_a_line_for_everything_that_stays(history: list[EpochRecord]) -> None:
    console, file = log()
    with PlainView(console, epochs=3) as view:
        view.say("a line that is [not markup] and longer than the sixty columns of this console")
        view.doing("loading data")
        for record in history:
            view.step(PROGRESS)
            view.epoch(record, best=record.epoch == 2)
    lines = file.getvalue().splitlines()
    assert lines[0] == "a line that is [not markup] and longer than the sixty columns of this console"
    assert lines[1] == "loading data ..."
    assert len(lines) == 6
    for line, record in zip(lines[2:], history, strict=True):
        assert line.startswith(epoch_line(record, best=record.epoch == 2))
    assert "\x1b" not in file.getvalue()


def test_a_log_tells_once_what_is_being_done_whatever_its_details() -> None:
    console, file = log()
    view = PlainView(console, epochs=3)
    for detail in ("", "1 of 2", "2 of 2"):
        view.doing("testing", detail)
    view.doing("saving")
    view.doing("testing")
    assert file.getvalue().splitlines() == ["testing ...", "saving ...", "testing ..."]


def test_a_log_tells_the_time_left_from_the_second_epoch_on(history: list[EpochRecord]) -> None:
    console, file = log()
    view = PlainView(console, epochs=3)
    view.epoch(history[0], best=False, new=False)
    for record in history[1:]:
        view.epoch(record, best=False)
    ends = [line.endswith("s left") for line in file.getvalue().splitlines()]
    assert ends == [False, False, True, False]


def test_a_terminal_gets_the_epochs_lines_above_live_bars(history: list[EpochRecord]) -> None:
    console, file = terminal()
    with LiveView(console, epochs=3) as view:
        view.doing("starting workers", "2 of 4")
        view.say("notice: [not markup]")
        view.epoch(history[1], best=True)
        view.step(PROGRESS)
    shown = words(file)
    assert "notice: [not markup]" in shown
    assert epoch_line(history[1], best=True) in shown
    assert re.search(r"epochs .* 1/3 ", shown)
    assert re.search(r"steps .* 5/20 .*1,234 images/s  adversarial_ce 1.500  stabilizing 0.250", shown)
    assert "epoch 2" in shown
    assert "starting workers 2 of 4" in shown


def test_the_terminal_is_restored_after_an_error() -> None:
    console, file = terminal()
    with pytest.raises(ZeroDivisionError), LiveView(console, epochs=3):
        raise ZeroDivisionError
    assert file.getvalue().rfind("\x1b[?25h") > file.getvalue().rfind("\x1b[?25l")


def test_a_live_view_is_for_terminals_alone() -> None:
    assert isinstance(open_view(terminal()[0], 3), LiveView)
    assert isinstance(open_view(log()[0], 3), PlainView)


def shown(summary: Summary) -> str:
    file = io.StringIO()
    show_summary(Console(file=file, width=120), summary)
    return file.getvalue()


def test_the_final_table_names_epoch_images_and_attacks() -> None:
    text = shown(SUMMARY)
    assert text.splitlines()[0] == "quickstart-1: epoch 2 on 360 test images"
    for words_of_table in ("clean", "FGSM", "PGD-20 x 2", "91.00%", "70.50%", "61.25%"):
        assert words_of_table in text
    assert re.search(r"conv1 .*0\.0300 .*0\.0100 .*0\.3000 .*0\.1234", text)
    assert "best epoch (2)" in text
    assert text.splitlines()[-3:] == [
        "3 epochs, 2 workers, 12 s, 1,234 images/s, 8,642 gradient evaluations/s, attack 80%",
        "MLflow run abc in sqlite:///mlflow.db",
        "model /runs/models/quickstart-1",
    ]


def test_an_alarm_and_an_early_end_are_told_at_the_end() -> None:
    ended = replace(SUMMARY, alarm="[overfits] at epoch 2", ended_early="epoch 3: it is " + "vain " * 30)
    lines = shown(ended).splitlines()
    first = lines.index("alarm: [overfits] at epoch 2")
    assert lines[first + 1] == "ended early at epoch 3: it is " + "vain " * 30
    assert lines[first + 2].startswith("3 epochs, 2 workers")


def test_one_restart_is_not_mentioned() -> None:
    once = merge(SUMMARY.experiment, {"test": {"restarts": 1, "steps": 50}})
    text = shown(replace(SUMMARY, experiment=once))
    assert "PGD-50 " in text
    assert " x " not in text


def test_a_run_that_failed_before_its_first_epoch_has_no_tables() -> None:
    failed = replace(
        SUMMARY,
        status="failed",
        message="why",
        published=None,
        epochs=0,
        best_epoch=None,
        validation=None,
        test=None,
        sensitivity={},
        images_per_second=None,
        gradient_evaluations_per_second=None,
        attack_share=None,
    )
    assert shown(failed) == "0 epochs, 2 workers, 12 s\nMLflow run abc in sqlite:///mlflow.db\n"
