"""Whatever stands in a recipe or on a command line is taken, or refused in one short line; nothing else ever happens.

Each case goes through a script's main function as far as what that would look at or start: a case that gets there is in
order. It is drawn from the seed and its number alone, so the number that a failure names repeats it:

DISTSENS_CASE=1234 pytest tests/fuzz/test_command_lines.py
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
import torch
from drawn_lines import RECIPE, ROOT, SCRIPTS, Case, drawn_case

from distsens.command_line import run_job

SEED, CASES = 17, 10_000
_PARTS = 4
_LONGEST_LINE = 2_600
_LONGEST_S = 5.0
_LOOKING = ("driver", "sweep_driver", "examination_driver", "analysis_driver", "sweep_preflight", "analysis_preflight")
_THERE = {"net.pt", "base.yaml", RECIPE}


class _Started(BaseException):
    """The words were in order, and the job went on to what they say."""


class _TooLong(BaseException):
    """The case took longer than anybody waits for a refusal."""


def _start(*_: Any, **__: Any) -> NoReturn:
    raise _Started


def _stop(*_: Any) -> NoReturn:
    raise _TooLong


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    """The scripts as modules, each up to what it would look at or start."""
    found = {}
    for job, path in SCRIPTS.items():
        specification = importlib.util.spec_from_file_location(f"fuzzed_{job}", ROOT / path)
        assert specification is not None
        assert specification.loader is not None
        found[job] = sys.modules[f"fuzzed_{job}"] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(found[job])
    return found


@pytest.fixture
def run(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[Case], tuple[str, str]]]:
    """Run a case: how it ended, and what is wrong with that."""
    monkeypatch.chdir(tmp_path)
    for module in _LOOKING:  # who is imported while others are replaced keeps what stands in for them
        importlib.import_module(f"distsens.distributed.{module}")
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for checks in (
        "distsens.distributed.preflight.check",
        "distsens.distributed.sweep_preflight.check_sweep",
        "distsens.distributed.examination_preflight.check_examination",
        "distsens.distributed.analysis_preflight.check_analysis",
    ):
        monkeypatch.setattr(checks, _start)
    begins = {"models": ["_look_after"], "benchmark": ["_measure"], "submit": ["_ask"], "stack": ["Stack"]}
    for job, names in {**begins, "local": ["up", "down"]}.items():
        for name in names:
            monkeypatch.setattr(scripts[job], name, _start)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    (tmp_path / "net.pt").touch()
    (tmp_path / "base.yaml").write_text(f"extends: {RECIPE}\nseed: 3\n")

    def run(case: Case) -> tuple[str, str]:
        (tmp_path / RECIPE).write_bytes(case.recipe)
        monkeypatch.setattr(sys, "argv", [SCRIPTS[case.job], *case.arguments])
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        signal.setitimer(signal.ITIMER_REAL, _LONGEST_S)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                run_job(scripts[case.job].main)
        except SystemExit as ended:
            code = ended.code
        except _Started:
            return "taken", ""
        except _TooLong:
            return "too long", f"it takes more than {_LONGEST_S} s"
        except BaseException:
            return "traceback", "\n".join(line[:300] for line in traceback.format_exc().splitlines()[-12:])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if left := {path.name for path in tmp_path.iterdir()} - _THERE:
            return "writes", f"it leaves {left}"
        said = err.getvalue()
        if code == 2 and not out.getvalue():
            one_line = said.startswith("error: ") and said.endswith("\n") and said[:-1].isprintable()
            return "refused", "" if one_line and len(
                said
            ) <= _LONGEST_LINE else f"{len(said)} characters: {said[:500]!r}"
        return f"ended with {code}", "" if code == 0 else f"{out.getvalue()[:300]!r} {said[:300]!r}"

    before = signal.signal(signal.SIGALRM, _stop)
    yield run
    signal.signal(signal.SIGALRM, before)


@pytest.mark.drill
@pytest.mark.parametrize("part", range(_PARTS))
def test_ten_thousand_command_lines_are_taken_or_refused_in_one_line(
    part: int, run: Callable[[Case], tuple[str, str]], scripts: dict[str, ModuleType]
) -> None:
    wrong, ends = [], Counter[str]()
    for number in range(part, CASES, _PARTS):
        case = drawn_case(SEED, number, scripts)
        end, fault = run(case)
        ends[end] += 1
        wrong += [f"case {number}: {case}\n{end}: {fault}\n"] if fault else []
    assert not wrong, f"{len(wrong)} cases ({ends})\n" + "\n".join(wrong[:20])
    # Else they would all fail at their first word.
    assert min(ends["taken"], ends["refused"]) > CASES / _PARTS / 10, ends


@pytest.mark.skipif("DISTSENS_CASE" not in os.environ, reason="repeats one case of the slow test")
def test_one_case(run: Callable[[Case], tuple[str, str]], scripts: dict[str, ModuleType]) -> None:
    case = drawn_case(SEED, int(os.environ["DISTSENS_CASE"]), scripts)
    print(case)
    end, fault = run(case)
    assert not fault, f"{case}\n{end}: {fault}"
