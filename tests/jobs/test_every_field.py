"""Whatever a job's --help names can be said on its command line, and arrives."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch

from distsens.analysis import Analysis
from distsens.errors import InputError
from distsens.examination import Examination
from distsens.experiment import Experiment

JOBS = Path(__file__).resolve().parents[2] / "jobs"
# Where every job begins its work, and what the words of its command must say whatever else they say.
BEGINS = {
    "train": ("_train", "--recipe quickstart"),
    "tune": ("_tune", "--recipe quickstart --search.seed.choice 0 1"),
    "evaluate": ("_evaluate", "--model net.pt"),
    "analyze": ("_analyze", "--model net.pt"),
    "models": ("_look_after", ""),
    "benchmark": ("_measure", ""),
}
# Where not any value of the field's type will do: how one is written, and what arrives.
WRITTEN: dict[str, tuple[str, object]] = {
    "recipe": ("mnist-sns", "mnist-sns"),
    "data.extra_sha256": ("a" * 64, "a" * 64),
    "model.weights_sha256": ("b" * 64, "b" * 64),
    "stabilize.warmup_end": ("0.9", 0.9),
    "sweep.champion": ("'{training.epochs: 3}'", {"training.epochs": 3}),
    "sweep.rungs": ("'{training.epochs: 2}'", ({"training.epochs": 2},)),
    "sweep.searcher": ("tpe", "tpe"),
    "ablation.draws": ("12", 12),
    "figure": ("out.svg", "out.svg"),
    "factory": ("nets:net", "nets:net"),
    "prune": ("3", "3"),
}
# What a field cannot be said without.
BESIDE = {
    "sweep.rungs": "--sweep.scheduler asha",
    "sweep.scheduler": "--sweep.rungs '{training.epochs: 2}'",
    "fetch": "--to folder",
    "to": "--fetch run",
    "protect": "--prune 3",
}
# Fields that end the job before it begins, or make it begin otherwise: tests of their own are for them.
OTHERWISE = {
    *(("train", field) for field in ("print_experiment", "factory")),
    *(("tune", field) for field in ("print_experiment", "resume", "factory")),
}
# Options that are another name of a field.
ALIASES = {"factory": "model.factory", "save_examples": "examples", "model": "model.address"}


class Reached(Exception):  # noqa: N818 (it is no error)
    """The job begins its work."""


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The job as a module whose work is to say what it is told."""
    specification = importlib.util.spec_from_file_location(f"{name}_job", JOBS / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, f"{name}_job", module)
    specification.loader.exec_module(module)

    def begin(*told: object) -> None:
        raise Reached(*told)

    monkeypatch.setattr(module, BEGINS[name][0], begin)
    return module


def flags_of(job: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Names of the fields in the job's help, which shows a switch by its two flags."""
    monkeypatch.setenv("COLUMNS", "80")  # in one column, in which every flag begins its line
    with pytest.raises(SystemExit):
        job.main(["--help"])
    found = re.findall(r"^(?:│ |\| |  )--([a-z][\w.-]*)", capsys.readouterr().out, re.MULTILINE)
    assert len(found) == len(set(found)) >= 5
    return [name.replace("-", "_") for name in found]


def told(name: str, job: Any, *arguments: str) -> dict[str, Any]:
    """What the job is told by these words: its options, and the sections on top of them."""
    with pytest.raises(Reached) as reached:
        job.main([*BEGINS[name][1].split(), *arguments])
    options, *rest = reached.value.args
    match name:
        case "evaluate":
            models, changes = rest
            (fields,) = job._fields(changes, [], models, None)
            sections: Any = Examination.parse(fields)
        case "analyze":
            sections = Analysis.parse(rest[0])
        case "tune":
            sections = {"sweep": rest[1].sweep, **dict(rest[1].base)}
        case "benchmark":
            sections = {}
        case _:
            sections = rest[0]
    return vars(options) | dict(sections)


def held(by: dict[str, Any], field: str) -> Any:
    """The value of a dotted field."""
    first, *parts = field.split(".")
    value = by[first]
    for part in parts:
        value = getattr(value, part)
    return value


def kind_of(job: Any, by: dict[str, Any], field: str) -> Any:
    """The type of a dotted field."""
    section, _, last = field.rpartition(".")
    if section:
        return type(held(by, section)).model_fields[last].annotation
    hints = get_type_hints(job.Options)
    if last in hints:
        return hints[last]
    return {**Examination.model_fields, **Analysis.model_fields, **Experiment.model_fields}[last].annotation


def sample(kind: Any, now: object) -> tuple[list[str], object]:
    """Another value of the type than the field has: how it is written, and what arrives."""
    while get_origin(kind) in (Annotated, Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        other = next(one for one in get_args(kind) if one != now)
        return [other], other
    if get_origin(kind) is tuple:
        first, one = sample(get_args(kind)[0], None)
        second, two = sample(get_args(kind)[0], one)
        return first + second, (one, two)
    if kind is bool:
        return ([], True) if not now else (["false"], False)
    if kind is int:
        number = now + 1 if isinstance(now, int) else 3
        return [str(number)], number
    if kind is float:
        return (["1/4"], 0.25) if now != 0.25 else (["1/8"], 0.125)
    assert kind in (str, Path), kind
    return ["text"] if now != "text" else ["more"], kind("text" if now != "text" else "more")


@pytest.mark.parametrize("name", BEGINS)
def test_every_field_of_the_help_can_be_said_and_arrives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    job = load(name, monkeypatch)
    before = told(name, job)
    faults = {}
    for flag in flags_of(job, monkeypatch, capsys):
        if (name, flag) in OTHERWISE:
            continue
        field = ALIASES.get(flag, flag) if name in ("evaluate", "analyze") else flag
        if flag in WRITTEN:
            written, arrives = WRITTEN[flag]
            words = shlex.split(written)
        else:
            words, arrives = sample(kind_of(job, before, flag), held(before, field))
        if flag == "model" and name != "benchmark":
            words, arrives = ["text"], "text"
        several = [(words, arrives)]
        if isinstance(arrives, tuple) and flag not in WRITTEN:
            several.append((words[:1], arrives[:1]))
        for given, expected in several:
            assert expected != held(before, field), field
            try:
                found = held(told(name, job, *shlex.split(BESIDE.get(flag, "")), f"--{flag}", *given), field)
            except InputError as error:
                faults[flag] = str(error)
            else:
                if found != expected:
                    faults[flag] = f"{given} arrives as {found!r}"
    assert faults == {}


@pytest.mark.parametrize("name", ["evaluate", "analyze"])
@pytest.mark.parametrize("dashed", [False, True])
def test_fields_of_a_model_can_be_said_beside_its_address_in_any_order(
    name: str, dashed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load(name, monkeypatch)
    monkeypatch.setitem(BEGINS, name, (BEGINS[name][0], ""))
    flags = ["--model net.pt", "--factory f:n", "--model.mean 0.1307", "--model.std=0.3081", "--model.small_images"]
    for order in itertools.permutations(flags):
        words = " ".join(order).replace("_images", "-images" if dashed else "_images").split()
        model = held(told(name, job, *words), "model")
        assert model.model_dump() == {
            "address": "net.pt", "factory": "f:n", "mean": (0.1307,), "std": (0.3081,), "small_images": True,
        }  # fmt: skip


def test_what_goes_on_and_what_follows_it_have_what_was_said_of_files_of_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {"factory": "f:n", "mean": (0.1307,), "std": (0.3081,), "small_images": False}
    begun = [
        Examination.parse({"model": {"address": address, **more}}) for address, more in (("r", {}), ("a.pt", said))
    ]
    fields = load("evaluate", monkeypatch)._fields
    for changes in ({}, {"model": said}):
        run, file = (Examination.parse(one).model for one in fields(changes, begun, [], None))
        assert (run, file) == (begun[0].model, begun[1].model)
    (_, _, further, another) = fields({"seed": 3}, begun[::-1], ["b.pt@g:m", "runs/r"], None)
    assert Examination.parse(further).model.model_dump() == {"address": "b.pt@g:m", **said}
    assert Examination.parse(another).model == Examination.parse({"model": {"address": "runs/r"}}).model
    assert Examination.parse(further).seed == 3


def test_a_factory_that_a_resumed_evaluation_names_need_not_be_that_of_further_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = load("evaluate", monkeypatch)
    with pytest.raises(Reached) as reached:
        job.main("--resume r --factory mine:net --model b.pt --model.factory lenet5".split())
    options, models, changes = reached.value.args
    assert (options.resume, options.factory, models) == (("r",), ("mine:net",), ["b.pt"])
    assert changes == {"model": {"factory": "lenet5"}}
    begun = Examination.parse({"model": {"address": "a.pt@mine:net"}})
    (resumed,) = job._fields({"model": {"factory": "mine:net"}}, [begun], [], None)
    assert Examination.parse(resumed) == begun, "it was only named again"
