"""Wrong input of a sweep is one line and exit code 2, before any Ray is started or anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "recipe: got None; name one"),
        (["--recipe", "quickstart"], "search: got None; name fields"),
        (["--recipe", "tune-quickstart", "--search.stabilize.wight.uniform", "0", "1"], "there is no such field"),
        (["--recipe", "tune-quickstart", "--search.stabilize.ratio.uniform", "0.1", "2"], "search.stabilize.ratio"),
        (["--recipe", "tune-quickstart", "--sweep.scheduler", "hyperband"], "sweep.scheduler: got 'hyperband'"),
        (["--recipe", "tune-quickstart", "--name", "a" * 161], "aaaaa'; string should have at most 160 characters"),
        (["--recipe", "tune-quickstart", "--sweep.registered_name", "m" * 251], "at most 250 characters"),
        (["--recipe", "tune-quickstart", "--sweep.trials", "0"], "sweep.trials: got 0"),
        (["--recipe", "tune-quickstart", "--workers.num", "50"], "workers.num: got 50; this machine has room for"),
        (["--recipe", "tune-quickstart", "--summary", "/nowhere/s.json"], "summary: got '/nowhere/s.json'"),
        (["--recipe", "tune-quickstart", "--factory", "a:b"], "factory: got ('a:b',); only with --resume"),
        (["--resume", "nothing"], "resume: got 'nothing'; there is no sweep.json"),
        (["--resume", "nothing", "--recipe", "tune-quickstart"], "recipe: got 'tune-quickstart'; a resumed sweep"),
        (["--recipe", "tune-quickstart", "--data.name", "no_such_set"], "data.name"),
        (
            ["--recipe", "tune-quickstart", "--search.model.name.choice", "small_cnn", "no_such_net"],
            "search.model.name: got 'no_such_net'",
        ),
        (
            ["--recipe", "tune-quickstart", "--search.stabilize.layers.choice", "network.conv1", "network.nothing"],
            "search.stabilize.layers",
        ),
        (
            ["--recipe", "tune-quickstart", "--sweep.champion.data.limit", "999999"],
            "sweep.champion.data.limit: got 999999",
        ),
        (
            ["--recipe", "tune-quickstart", "--search.threat.eps.grid", "0", "0.1"],
            "search.threat.eps: got 0.0; at least 1e-06 with objective.name pgd_at",
        ),
        (
            ["--recipe", "tune-quickstart", "--sweep.champion.threat.eps", "0"],
            "sweep.champion.threat.eps: got 0.0; at least 1e-06",
        ),
    ],
)
def test_wrong_input_is_one_line(run_here: Run, tmp_path: Path, arguments: list[str], said: str) -> None:
    code, _, error = run_here("tune", *arguments)
    assert code == 2
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_a_dry_run_says_what_the_sweep_would_be(run_here: Run, tmp_path: Path) -> None:
    code, output, _ = run_here("tune", "--recipe", "tune-quickstart", "--dry-run")
    assert code == 0
    assert "search stabilize.weight: loguniform [0.1, 10]" in output
    assert "12 trials by random, scheduler asha" in output
    assert "everything that can be checked is in order" in output
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_the_printed_sweep_is_a_recipe_of_the_same_sweep(run_here: Run, tmp_path: Path) -> None:
    code, output, _ = run_here("tune", "--recipe", "tune-quickstart", "--sweep.trials", "3", "--print-experiment")
    assert code == 0
    (tmp_path / "mine.yaml").write_text(output)
    assert run_here("tune", "--recipe", "./mine.yaml", "--print-experiment")[1] == output
    assert yaml.safe_load(output)["sweep"]["trials"] == 3


def test_the_help_names_every_setting_of_a_sweep(run_here: Run) -> None:
    code, output, _ = run_here("tune", "--help")
    assert code == 0
    assert "--sweep.clean-floor" in output
    assert "--stabilize.weight" in output


def test_a_training_refuses_a_sweeps_recipe_and_says_why(run_here: Run) -> None:
    code, _, error = run_here("train", "--recipe", "tune-quickstart")
    assert code == 2
    assert "there is no such field" in error
