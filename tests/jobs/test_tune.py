"""The sweep, run as a user runs it, on a real Ray: killed and resumed, with trials that fail, stop, and go on."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from distsens.storage import open_place, read_json

pytestmark = pytest.mark.ray

# One after another: a trial that comes to its end, one that learns nothing (ASHA ends it at the first rung), one that
# is not finite within an epoch, as its weights decay by more than they are (it fails, and the sweep goes on), and
# another good one.
RECIPE: dict[str, Any] = {
    "extends": "quickstart",
    "data": {"limit": 512},
    "model": {"name": "lenet5"},
    "threat": {"eps": 0.05},
    "training": {"epochs": 4, "batch_size": 32, "weight_decay": 1},
    "attack": {"steps": 2},
    "validation": {"steps": 2},
    "test": {"steps": 3, "restarts": 1},
    "stabilize": {"warmup_start": 0, "weight": 0.2},
    "workers": {"num": 1, "max_failures": 0},
    "seed": 1,
    "search": {"training.lr": {"grid": [3.0e-3, 1.0e-9, 1000, 4.0e-3]}},
    "sweep": {
        "searcher": "grid",
        "scheduler": "asha",
        "reduction": 2,
        "rungs": [{"training.epochs": 3}],
        "concurrent": 1,
        "judged_images": 10,
        "finalists": 2,
    },
}


def sweep_runs(job: Any) -> tuple[Any, list[Any]]:
    """The MLflow run of the sweep and its trials' runs, from the job's store."""
    client = MlflowClient(f"sqlite:///{job.storage}/mlflow.db")
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == len(runs) - 1
    return parents[0], children


@dataclass
class Plants:
    """Leaves a file when it is unpickled."""

    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@dataclass
class Killed:
    """A sweep whose driver was killed when one of its trials had ended."""

    job: Any
    name: str

    @property
    def folder(self) -> Path:
        return Path(self.job.storage / self.name)

    @property
    def planted(self) -> Path:
        """What there would be had a planted pickle been run."""
        return Path(self.job.folder / "planted")

    def spoil(self) -> None:
        """Cut what Ray Tune has written in half, and replace all its pickles by one that does something."""
        states = [*self.folder.glob("tune/experiment_state-*.json")]
        pickles = [path for path in self.folder.glob("tune/**/*") if path.suffix == ".pkl" or "search" in path.name]
        assert states
        assert pickles
        for path in states:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        for path in pickles:
            path.write_bytes(pickle.dumps(Plants(self.planted)))

    def files(self) -> dict[Path, int]:
        """What its trials have left, by the time of writing."""
        return {path: path.stat().st_mtime_ns for path in self.folder.glob("trials/**/*") if path.is_file()}

    def results(self) -> dict[Path, int]:
        """Of them what makes rungs done."""
        return {path: time for path, time in self.files().items() if path.name == "result.json"}


@pytest.fixture(scope="module")
def killed(make_job: Callable[..., Any]) -> Killed:
    job = make_job("tune.py")
    recipe = job.folder / "rates.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    process = job.start("--recipe", str(recipe))
    while "finished" not in process.wait_for("trial   0"):
        pass
    found = Killed(job, next(line.removeprefix("sweep ") for line in process.lines if line.startswith("sweep ")))
    os.killpg(process.popen.pid, signal.SIGKILL)
    process.popen.wait(timeout=60)
    assert len(found.results()) >= 2, "both rungs of the trial that came to its end"
    return found


@pytest.fixture(scope="module")
def resumed(killed: Killed) -> tuple[Any, dict[str, Any]]:
    """The sweep moved, and resumed to its end, with Ray Tune's state cut in half, and pickles of strangers in it."""
    killed.spoil()
    done = {path.relative_to(killed.folder): time for path, time in killed.results().items()}
    before = killed.job.move()
    summary = killed.job.finish("--resume", str(killed.folder))
    times = {path.relative_to(killed.folder): time for path, time in killed.results().items()}
    assert {path: times[path] for path in done} == done, "a rung that was done was trained again"
    assert not before.exists(), sorted(before.rglob("*"))
    assert not killed.planted.exists(), "a pickle in the sweep's folder was run"
    return killed.job, summary


@pytest.mark.drill
def test_a_killed_sweep_is_resumed_to_its_end_and_asha_knows_the_scores_from_before(
    resumed: tuple[Any, dict[str, Any]],
) -> None:
    _, summary = resumed
    assert summary["status"] == "finished"
    assert [(one["values"]["training.lr"], one["status"], sorted(one["rungs"])) for one in summary["trials"]] == [
        (3e-3, "finished", ["1", "2"]),
        (1e-9, "stopped", ["1"]),  # worse than the trial that ended before the kill: alone it would have gone on
        (1000, "failed", ["1"]),
        (4e-3, "finished", ["1", "2"]),
    ]
    epochs = [[rung["epochs"] for rung in one["rungs"].values()] for one in summary["trials"]]
    assert epochs == [[3, 4], [3], [0], [3, 4]]


@pytest.mark.drill
def test_trials_that_are_not_finite_are_recorded_as_failed_and_the_sweep_goes_on(
    resumed: tuple[Any, dict[str, Any]],
) -> None:
    _, summary = resumed
    failures = {one["values"]["training.lr"]: one["failure"] for one in summary["trials"] if one["status"] == "failed"}
    assert set(failures) == {1000}
    assert "became NaN or infinite" in failures[1000]


@pytest.mark.drill
def test_mlflow_holds_one_run_for_the_sweep_one_for_each_trial_and_the_champions(
    resumed: tuple[Any, dict[str, Any]],
) -> None:
    job, summary = resumed
    parent, children = sweep_runs(job)
    assert parent.info.run_id == summary["mlflow_run_id"]
    assert parent.info.status == "FINISHED"
    trials = {run.data.tags["distsens.trial"]: run for run in children if "distsens.sweep" in run.data.tags}
    assert set(trials) == {one["trial"] for one in summary["trials"]}
    assert len(children) == len(trials) + 1
    client = MlflowClient(f"sqlite:///{job.storage}/mlflow.db")
    for one in summary["trials"]:
        run = trials[one["trial"]]
        assert run.info.status == ("FAILED" if one["status"] == "failed" else "FINISHED")
        assert run.data.params["training.lr"] == str(one["values"]["training.lr"])
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "validation/robust_accuracy")]
        assert steps == sorted(set(steps)), "an epoch was logged twice"
        if one["status"] == "finished":
            assert steps == list(range(8)), "three epochs at the first rung, four at the second"
            assert run.data.metrics["robust_accuracy"] == one["rungs"]["2"]["robust"]


@pytest.mark.drill
def test_the_champion_is_the_finalist_that_autoattack_leaves_most_of_and_is_registered_with_its_lineage(
    resumed: tuple[Any, dict[str, Any]],
) -> None:
    job, summary = resumed
    champion = summary["champion"]
    finalists = {one["trial"]: one["autoattack"] for one in summary["trials"] if one["autoattack"] is not None}
    assert len(finalists) == 2
    assert finalists[champion["trial"]] == max(finalists.values())
    assert champion["test"]["images"] == 360
    client = MlflowClient(f"sqlite:///{job.storage}/mlflow.db")
    version = client.get_model_version_by_alias("rates", "champion")
    assert version.run_id == champion["mlflow_run_id"]
    assert version.tags["sweep_run_id"] == summary["mlflow_run_id"]
    assert version.tags["trial"] == champion["trial"]
    assert champion["registered"] == "models:/rates@champion"


@pytest.mark.drill
def test_the_sweep_leaves_its_report_figures_and_tables(resumed: tuple[Any, dict[str, Any]]) -> None:
    job, summary = resumed
    folder = job.storage / summary["sweep"] / "report"
    table = pd.read_parquet(folder / "trials.parquet")
    assert set(table["trial"]) == {one["trial"] for one in summary["trials"]}
    assert set(table.loc[table["front"], "trial"]) == set(summary["front"])
    assert "Sweep rates-" in (folder / "report.html").read_text()
    client = MlflowClient(f"sqlite:///{job.storage}/mlflow.db")
    logged = {one.path for one in client.list_artifacts(summary["mlflow_run_id"])}
    assert {"report.html", "trials.parquet", "front.csv", "figures", "findings.txt"} <= logged


@pytest.mark.drill
def test_a_sweep_that_is_done_is_done_when_it_is_resumed_from_another_folder(
    resumed: tuple[Any, dict[str, Any]], make_job: Callable[..., Any]
) -> None:
    job, summary = resumed
    before = sweep_runs(job)[1]
    again = make_job("tune.py").finish("--resume", str(job.storage / summary["sweep"]))
    assert (again["status"], again["champion"]) == ("finished", summary["champion"])
    assert {run.info.run_id for run in sweep_runs(job)[1]} == {run.info.run_id for run in before}


@pytest.mark.drill
def test_a_trials_last_rung_is_the_same_as_a_separate_run(
    resumed: tuple[Any, dict[str, Any]], make_job: Callable[..., Any]
) -> None:
    job, summary = resumed
    recipe = {key: value for key, value in RECIPE.items() if key not in ("search", "sweep")}
    alone = make_job("train.py")
    (alone.folder / "alone.yaml").write_text(yaml.safe_dump(recipe))
    run = alone.finish("--recipe", str(alone.folder / "alone.yaml"), "--training.lr", "3e-3")
    trial = next(one for one in summary["trials"] if one["values"] == {"training.lr": 3e-3})
    result = json.loads((job.storage / summary["sweep"] / "trials" / trial["trial"] / "rung-2/result.json").read_text())
    client = MlflowClient(run["mlflow_uri"])
    for metric in ("loss", "validation/robust_accuracy", "sensitivity/absolute/network.conv1"):
        history = {point.step: point.value for point in client.get_metric_history(run["mlflow_run_id"], metric)}
        mine = {one["epoch"]: one["metrics"][metric] for one in result["history"] if metric in one["metrics"]}
        assert mine == pytest.approx(history, rel=1e-12)


@pytest.mark.drill
def test_a_population_in_a_bucket_is_interrupted_and_its_worse_trial_goes_on_from_the_better_one(
    make_job: Callable[..., Any],
    no_actor_left: Callable[[], None],
    moto: dict[str, str],
    use_s3: Callable[[Mapping[str, str]], str],
) -> None:
    job = make_job("tune.py")
    job.storage_url = f"{use_s3(moto)}/sweeps"
    recipe = {
        **RECIPE,
        "training": {**RECIPE["training"], "epochs": 5},
        # Drawn far apart, so that one is the worse throughout.
        "search": {"training.lr": {"loguniform": [1.0e-6, 1.0e-2]}},
        "sweep": {"trials": 2, "scheduler": "pbt", "interval": 1, "judged_images": 10},
    }
    path = job.folder / "population.yaml"
    path.write_text(yaml.safe_dump(recipe))
    process = job.start("--recipe", str(path), "--summary", "first.json")
    process.wait_for("2 trials, 2 at a time (1 worker each")
    process.wait_for("trial ")
    process.popen.send_signal(signal.SIGINT)
    assert process.end() == 130, process.output
    first = json.loads((job.folder / "first.json").read_text())
    assert (first["status"], first["champion"]) == ("interrupted", None)
    assert first["best"] is not None
    assert "best first" in process.output
    no_actor_left()
    summary = job.finish("--resume", f"{job.storage_url}/{first['sweep']}")
    assert [one["status"] for one in summary["trials"]] == ["finished", "finished"]
    parent, children = sweep_runs(job)
    assert parent.info.status == "FINISHED"
    assert len(children) == 3
    client = MlflowClient(f"sqlite:///{job.folder}/runs/mlflow.db")
    rates = [
        {point.value for point in client.get_metric_history(run.info.run_id, "searched/training.lr")}
        for run in children
        if "distsens.sweep" in run.data.tags
    ]
    assert max(len(some) for some in rates) > 1, "no trial has changed its values"
    place = open_place(f"{job.storage_url}/{first['sweep']}/trials")
    results = [read_json(place, key)["history"] for key in place.keys("") if key.endswith("/result.json")]
    whole = [history for history in results if len(history) == 6]
    assert any(one[1] == other[1] for one, other in itertools.combinations(whole, 2)), (
        "no trial went on from the other's weights"
    )


# A network that the storage of its weights fails for as long as a file is there.
FLAKY = """
from pathlib import Path

from distsens.models.lenet import lenet5

DOWN = Path(__file__).with_name("down")


def network(*, shape, classes):
    if DOWN.exists():
        raise ConnectionResetError("the weights cannot be fetched: reset by peer")
    return lenet5(shape=shape, classes=classes)
"""


@pytest.fixture(scope="module")
def flaky(make_job: Callable[..., Any]) -> tuple[Any, list[Any], list[dict[str, Any]]]:
    """A sweep whose trial cannot fetch its weights, resumed while its report cannot be kept, and resumed again.

    The three processes and what they summarise.
    """
    job = make_job("tune.py")
    job.environment = job.environment | {"PYTHONPATH": f"{job.folder}{os.pathsep}{job.environment['PYTHONPATH']}"}
    (job.folder / "flaky.py").write_text(FLAKY)
    recipe = {
        **RECIPE,
        "model": {"name": "flaky:network"},
        "training": {**RECIPE["training"], "epochs": 1},
        "search": {"training.lr": {"grid": [3.0e-3]}},
        "sweep": {"searcher": "grid", "judged_images": 0, "max_failed": 0},
    }
    path = job.folder / "flaky.yaml"
    path.write_text(yaml.safe_dump(recipe))
    down = job.folder / "down"
    first = job.start("--recipe", str(path), "--summary", "0.json")
    name = first.wait_for("sweep ").split()[1]
    down.touch()
    first.end()
    down.unlink()
    in_the_way = job.storage / name / "report"
    in_the_way.touch()
    second = job.run("--resume", name, "--factory", "flaky:network", "--summary", "1.json")
    in_the_way.unlink()
    third = job.run("--resume", name, "--factory", "flaky:network", "--summary", "2.json")
    return job, [first, second, third], [json.loads((job.folder / f"{n}.json").read_text()) for n in range(3)]


@pytest.mark.drill
def test_a_trial_that_something_passing_has_ended_is_tried_again_when_the_sweep_is_resumed(
    flaky: tuple[Any, list[Any], list[dict[str, Any]]],
) -> None:
    _, (process, *_), (first, second, _) = flaky
    assert process.popen.returncode == 1, process.output
    assert "Traceback" not in process.output
    (trial,) = first["trials"]
    assert (trial["status"], trial["passing"]) == ("failed", True)
    assert "ConnectionResetError: the weights cannot be fetched: reset by peer" in trial["failure"]
    (again,) = second["trials"]
    assert (again["trial"], again["status"], again["passing"]) == (trial["trial"], "finished", False)


@pytest.mark.drill
def test_what_fails_at_a_sweeps_end_is_said_in_one_line_beside_its_summary_and_alone_done_again(
    flaky: tuple[Any, list[Any], list[dict[str, Any]]],
) -> None:
    job, (_, process, last), (_, second, third) = flaky
    assert process.popen.returncode == 1, process.output
    assert "Traceback" not in process.output
    assert second["status"] == "failed"
    assert second["message"].startswith("the report could not be kept: ")
    assert second["champion"]["registered"] == "models:/flaky@champion"
    assert "best first" in process.output
    assert f"failed: {second['message']}" in process.output
    assert last.popen.returncode == 0, last.output
    assert (third["status"], third["champion"]) == ("finished", second["champion"])
    assert third["trials"] == second["trials"]
    assert (job.storage / third["sweep"] / "report/report.html").exists()
    parent, _ = sweep_runs(job)
    assert parent.info.status == "FINISHED"


def test_a_dry_run_on_a_cluster_refuses_a_champion_that_it_cannot_hold(make_job: Callable[..., Any]) -> None:
    job = make_job("tune.py")
    champion = ("--sweep.champion.workers.num", "4")
    refused = job.run("--recipe", "tune-quickstart", "--workers.num", "1", *champion, "--dry-run")
    assert refused.popen.returncode == 2
    joining, error = refused.lines
    assert joining.startswith("joining the Ray cluster at ")
    assert error == "error: workers.num: got 4; the cluster has room for 3 workers of 1 CPU each"


def test_optuna_searches_the_front_with_two_workers_a_trial_and_a_sweep_that_fails_too_often_ends(
    make_job: Callable[..., Any],
) -> None:
    job = make_job("tune.py")
    recipe = {
        **RECIPE,
        "training": {**RECIPE["training"], "epochs": 1},
        "workers": {"num": 2},
        "seed": 8,  # draws the good rate first, and then the other
        "search": {"training.lr": {"choice": [3.0e-3, 1000]}, "stabilize.weight": {"loguniform": [0.1, 1.0]}},
        "sweep": {"trials": 3, "searcher": "tpe", "goal": "front", "max_failed": 0, "judged_images": 0},
    }
    path = job.folder / "front.yaml"
    path.write_text(yaml.safe_dump(recipe))
    process = job.run("--recipe", str(path), "--summary", "s.json")
    summary = json.loads((job.folder / "s.json").read_text())
    assert process.popen.returncode == 1, process.output
    assert summary["status"] == "failed"
    assert "1 trials failed, more than sweep.max_failed (0)" in summary["message"]
    assert [one["status"] for one in summary["trials"]][:2] == ["finished", "failed"]
    assert summary["front"]
    assert "1 at a time (2 workers each" in process.output
    parent, _ = sweep_runs(job)
    assert parent.info.status == "FAILED"
