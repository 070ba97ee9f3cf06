from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distsens.command_line import (
    WRONG_INPUT,
    as_lists,
    check_output,
    parse_flags,
    print_end,
    run_job,
    show_help,
    take_addresses,
    take_options,
    write_output,
)
from distsens.errors import InputError, UnavailableError
from distsens.examination import Examination
from distsens.experiment import Experiment

NAMES = st.from_regex(r"[a-z]{1,4}(_[a-z]{1,3})?", fullmatch=True).filter(lambda name: not name.startswith("no_"))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["C"]), max_size=8)
)
FIELDS = st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map(tuple), SCALARS | st.lists(SCALARS, min_size=2))


def as_yaml(value: object) -> str:
    """One value as somebody would write it in a recipe."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").removesuffix("\n")


@given(fields=FIELDS, dashes=st.booleans(), data=st.data())
def test_flags_say_what_a_recipe_with_the_same_fields_says(
    fields: dict[tuple[str, ...], Any], dashes: bool, data: st.DataObject
) -> None:
    expected: dict[str, Any] = {}
    arguments: list[str] = []
    for path, value in fields.items():
        section = expected
        for name in path[:-1]:
            if not isinstance(section.get(name), dict):
                section[name] = {}
            section = section[name]
        section[path[-1]] = value
        flag = "--" + ".".join(path)
        flag = flag.replace("_", "-") if dashes else flag
        written = [as_yaml(one) for one in (value if isinstance(value, list) else [value])]
        if len(written) == 1 and data.draw(st.booleans(), label="equals sign"):
            arguments.append(f"{flag}={written[0]}")
        else:
            arguments += [flag, *written]
    assert parse_flags(arguments) == expected


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("8/255", "8/255"),
        ("1e-3", "1e-3"),
        ("-1", -1),
        ("-0.5", -0.5),
        ("null", None),
        ("no", False),
        ("true", True),
        ("'no'", "no"),
        ("[a, b]", ["a", "b"]),
        ("[]", []),
        ("", None),
        ("a=b", "a=b"),
        ("package.module:factory", "package.module:factory"),
        ("http://host:5000", "http://host:5000"),
        ("*conv*", "*conv*"),
        ("@x", "@x"),
        ("a: b: c", "a: b: c"),
        ("2026-02-30", "2026-02-30"),
        ("0b_", "0b_"),
        ("!thing", "!thing"),
        ("my net #2.pt", "my net #2.pt"),
        ("a: b.pt", "a: b.pt"),
        ("{a: 1}", {"a": 1}),
        ("net.pt@nets:small", "net.pt@nets:small"),
    ],
)
def test_a_value_is_read_as_in_a_recipe_and_else_as_text(written: str, value: object) -> None:
    assert parse_flags(["--x", written]) == {"x": value}
    assert parse_flags([f"--x={written}"]) == {"x": value}


def test_numbers_that_yaml_takes_for_text_are_numbers_in_an_experiment() -> None:
    flags = parse_flags(["--threat.eps", "8/255", "--training.lr", "1e-3", "--stabilize.weight=5E-1"])
    experiment = Experiment.parse(flags)
    assert (experiment.threat.eps, experiment.training.lr, experiment.stabilize.weight) == (8 / 255, 0.001, 0.5)


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ([], {}),
        (["--dry-run"], {"dry_run": True}),
        (["--dry-run", "--x", "1"], {"dry_run": True, "x": 1}),
        (["--no-dry-run"], {"dry_run": False}),
        (["--data.no-download"], {"data": {"download": False}}),
        (["--data.download", "false"], {"data": {"download": False}}),
        (["--no-thing", "3"], {"no_thing": 3}),
        (["--stabilize.layers", "a", "b"], {"stabilize": {"layers": ["a", "b"]}}),
        (["--a.b", "1", "--a.c", "2", "--a.b", "3"], {"a": {"b": 3, "c": 2}}),
        (["--x", "-1", "-2"], {"x": [-1, -2]}),
        (["--refresh-steps", "3"], {"refresh_steps": 3}),
    ],
)
def test_flags_lists_and_switches(arguments: list[str], fields: dict[str, Any]) -> None:
    assert parse_flags(arguments) == fields


@pytest.mark.parametrize("arguments", [["quickstart"], ["-x", "1"], ["--x=1", "2"], ["--"], ["", "1"]])
def test_a_value_without_a_field_is_refused(arguments: list[str]) -> None:
    with pytest.raises(InputError, match=r"command line: got .*; a value without a field; write --field value"):
        parse_flags(arguments)


@pytest.mark.parametrize("flag", ["--training.epochs", "--threat.eps", "--seed"])
def test_a_number_whose_value_was_forgotten_is_refused(flag: str) -> None:
    with pytest.raises(InputError, match=f"^{flag.removeprefix('--')}: got True"):
        Experiment.parse(parse_flags([flag, "--data.download"]))


def test_a_single_value_becomes_a_list_where_the_field_holds_one() -> None:
    shape = Experiment().model_dump(mode="json")
    flags = parse_flags(["--data.augment", "crop", "--model.mean", "1/2", "--training.epochs", "3"])
    experiment = Experiment.parse(as_lists(flags, shape))
    assert experiment.data.augment == ("crop",)
    assert experiment.model.mean == (0.5,)
    assert experiment.training.epochs == 3


def test_lists_unknown_fields_and_sections_stay_what_they_are() -> None:
    shape = {"a": [1], "b": {"c": [], "d": 1}}
    fields = {"a": [2, 3], "b": {"c": 4, "d": 5, "e": 6}, "f": {"g": 7}}
    assert as_lists(fields, shape) == {"a": [2, 3], "b": {"c": [4], "d": 5, "e": 6}, "f": {"g": 7}}


@dataclass(frozen=True)
class Options:
    """A job's own flags."""

    recipe: str | None = None
    """Which one."""
    dry_run: bool = False
    """Check only."""


def test_help_shows_every_flag_and_default_and_exits_with_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exited:
        show_help("What the job does.", Options(), Experiment())
    assert exited.value.code == 0
    shown = capsys.readouterr().out
    assert "What the job does." in shown
    assert "--recipe" in shown
    assert "Check only." in shown
    for field, value in Experiment().flat().items():
        flag = "--" + field.replace("_", "-")
        assert flag in shown or "--" + field.rpartition(".")[0] + ".no-" in shown
        assert value is None or isinstance(value, str | bool) or f"{value:g}" in shown


def exit_code(job: Callable[[Sequence[str]], int], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr("sys.argv", ["job.py", *arguments])
    with pytest.raises(SystemExit) as exited:
        run_job(job)
    return exited.value.code


@pytest.mark.parametrize("code", [0, 1])
def test_a_job_gets_the_arguments_and_its_result_is_the_exit_code(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def job(arguments: Sequence[str]) -> int:
        seen.extend(arguments)
        return code

    assert exit_code(job, monkeypatch, "--recipe", "quickstart") == code
    assert seen == ["--recipe", "quickstart"]


def test_wrong_input_is_one_line_on_stderr_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(arguments: Sequence[str]) -> int:
        Experiment.parse(parse_flags(arguments))
        return 0

    assert exit_code(job, monkeypatch, "--training.epochs", "0") == WRONG_INPUT == 2
    output = capsys.readouterr()
    assert output.out == ""
    allowed = "input should be greater than or equal to 1 (allowed: at least 1, at most 100000)"
    assert output.err == f"error: training.epochs: got 0; {allowed}\n"


def test_an_interrupt_is_one_line_and_the_shells_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(_: Sequence[str]) -> int:
        raise KeyboardInterrupt

    assert exit_code(job, monkeypatch) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(_: Sequence[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("sys.argv", ["job.py"])
    with pytest.raises(ZeroDivisionError):
        run_job(job)


def test_a_file_that_cannot_be_written_is_refused_and_nothing_is_left_of_the_look(tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    there.write_text("kept")
    for path in (there, tmp_path / "new.json"):
        check_output("summary", str(path))
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]
    assert there.read_text() == "kept"
    for path, says in ((tmp_path, "it is a folder"), (tmp_path / "no" / "file", "its folder does not exist")):
        with pytest.raises(InputError, match=f"summary: got '{path}'; {says}"):
            check_output("summary", str(path))
    os.mkfifo(tmp_path / "pipe")
    for place in ("/proc/summary.json", str(tmp_path / "pipe")):
        with pytest.raises(InputError, match="it cannot be written"):
            check_output("summary", place)
    for place in ("~nobody-at-all/x", "a" * 300, "a\0b", "x/" * 5000):
        with pytest.raises(InputError, match=r"summary: got .*; ") as refused:
            check_output("summary", place)
        assert len(str(refused.value)) < 500


def test_what_a_job_has_found_is_written_or_it_is_said_in_one_line_that_it_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_output("summary", None, {}) == 0
    assert write_output("summary", str(tmp_path / "s.json"), {"robust": 0.5}) == 0
    assert json.loads((tmp_path / "s.json").read_text()) == {"robust": 0.5}
    assert capsys.readouterr().err == ""
    assert write_output("summary", str(tmp_path / "gone" / "s.json"), {}) == 1
    assert re.fullmatch(r"summary: \S+ cannot be written: No such file or directory\n", capsys.readouterr().err)


@pytest.mark.parametrize("written", ["--model.mean 0.5 --model net.pt", "--model net.pt --model.mean 0.5"])
def test_an_address_beside_fields_of_its_section_takes_nothing_of_them_away(written: str) -> None:
    flags = parse_flags(written.split())
    assert take_addresses(flags) == ["net.pt"]
    assert flags == {"model": {"mean": 0.5}}
    assert Examination.parse(flags).model.mean == (0.5,)


def test_several_addresses_are_taken_and_none_is_none() -> None:
    assert take_addresses(parse_flags("--model a.pt b.pt --model.std 0.2 0.3".split())) == ["a.pt", "b.pt"]
    assert take_addresses(parse_flags(["--model.address", "a.pt"])) == ["a.pt"]
    assert take_addresses({}) == []


def test_an_option_takes_no_value_one_or_several_as_its_default_says() -> None:
    @dataclass(frozen=True)
    class Options:
        resume: tuple[str, ...] = ()
        claim: str | None = None
        dry_run: bool = False

    assert take_options(Options, {"resume": "a"}) == Options(resume=("a",))
    assert take_options(Options, {"resume": ["a", "b"], "dry_run": True}) == Options(("a", "b"), None, True)
    flags = {"claim": {"a": 1}, "resume": "a"}
    assert take_options(Options, flags) == Options(resume=("a",))
    assert flags == {"claim": {"a": 1}}, "a section is no option"
    for wrong, says in (
        ({"resume": True}, "resume: got True; it takes a value, or several"),
        ({"claim": ["a", "b"]}, "it takes one value"),
        ({"dry_run": "a"}, "it takes no value"),
    ):
        with pytest.raises(InputError, match=says):
            take_options(Options, dict(wrong))


def test_a_key_that_is_twice_in_a_flags_value_is_refused() -> None:
    with pytest.raises(InputError, match=r"command line: got '\{a: 1, a: 2\}'; a is there twice, in line 1"):
        parse_flags(["--sweep.champion", "{a: 1, a: 2}"])


def test_what_is_not_to_be_had_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(_: Sequence[str]) -> int:
        raise UnavailableError("Ray does not start on this machine")

    assert exit_code(job, monkeypatch) == 1
    assert capsys.readouterr().err == "failed: Ray does not start on this machine\n"


@pytest.mark.parametrize("ends", [None, InputError("class", "caf\xe9", "\u732b"), UnavailableError("\u732b\x1b[31m")])
def test_a_terminal_without_the_letters_of_a_name_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, ends: Exception | None
) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}

    def job(_: Sequence[str]) -> int:
        print("class caf\xe9")
        if ends is not None:
            raise ends
        return 0

    with monkeypatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as exited:
            run_job(job)
    codes = {type(None): 0, InputError: WRONG_INPUT, UnavailableError: 1}
    assert exited.value.code == codes[type(ends)]
    output, errors = (stream.buffer.getvalue() for stream in streams.values())  # type: ignore[attr-defined]
    assert output == b"class caf\\xe9\n"
    assert b"\x1b" not in errors
    assert errors.count(b"\n") == (ends is not None)


@pytest.mark.parametrize(
    ("status", "message", "said"),
    [("failed", "the disk is full", "failed: the disk is full\n"), ("interrupted", "interrupted by SIGTERM", None)],
)
def test_how_a_job_ended_is_said_once(
    capsys: pytest.CaptureFixture[str], status: str, message: str, said: str | None
) -> None:
    print_end(status, message)
    assert capsys.readouterr().err == (said or f"{message}\n")
