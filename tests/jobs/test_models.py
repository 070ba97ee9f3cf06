"""The published models as a user lists, fetches and prunes them, in a folder and in a bucket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from distsens.storage import open_place, published

Run = Callable[..., tuple[int, str, str]]
NAMES = ("first-20260102-030405-abcd", "second-20260102-030405-abcd", "third-20260102-030405-abcd")


@pytest.fixture
def run(run_here: Run) -> Run:
    return partial(run_here, "models")


@pytest.fixture(params=["folder", "bucket"])
def storage(
    request: pytest.FixtureRequest, run: Run, moto: dict[str, str], use_s3: Callable[[Mapping[str, str]], str]
) -> str:
    """Address of a storage with three models."""
    url = f"{use_s3(moto)}/team" if request.param == "bucket" else "runs"
    metrics = {"validation/clean_accuracy": 0.9, "validation/robust_accuracy": 0.625}
    for name in NAMES:
        files = {"model.safetensors": name.encode(), "experiment.yaml": b"name: a\n"}
        published.publish(open_place(url), name, files, epoch=3, experiment="digest", metrics=metrics)
    return url


def test_models_are_listed_fetched_and_pruned(run: Run, storage: str, tmp_path: Path) -> None:
    code, output, _ = run("--storage.path", storage)
    assert code == 0
    assert "3 models in " in output
    assert "62.5%" in output

    code, output, error = run("--storage.path", storage, "--fetch", NAMES[1], "--to", "here/model")
    assert code == 0, error
    assert f"{tmp_path}/here/model holds {NAMES[1]}, verified" in output
    assert published.fetch(str(tmp_path / "here" / "model")).files["model.safetensors"] == NAMES[1].encode()
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["model"]

    code, output, _ = run("--storage.path", storage, "--prune", "1", "--protect", NAMES[0])
    assert code == 0
    assert f"deleted {NAMES[1]}\n2 models stay in " in output
    assert list(published.models(open_place(storage))) == [NAMES[0], NAMES[2]]


def test_an_altered_model_is_not_fetched_and_nothing_of_it_is_left(run: Run, storage: str, tmp_path: Path) -> None:
    open_place(storage).put(f"models/{NAMES[0]}/model.safetensors", b"x" * len(NAMES[0]))
    code, _, error = run("--storage.path", storage, "--fetch", NAMES[0], "--to", "here/model")
    assert (code, error.count("\n")) == (2, 1)
    assert "its SHA-256 is not the one in the manifest" in error
    assert not list((tmp_path / "here").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--fetch x", "error: to: got None; a folder, if and only if --fetch names a model"),
        ("--to x", "error: to: got 'x'; a folder, if and only if"),
        ("--fetch x --to y", "error: fetch: got 'x'; there is no such model in file:///"),
        ("--prune 0", "error: prune: got '0'; how many models stay: a whole number, 1 or more"),
        ("--prune many", "error: prune: got 'many'; how many"),
        ("--prune", "error: prune: got True; it takes one value"),
        ("--prune 1 --protect x", "error: protect: got 'x'; there is no such model"),
        ("--protect x", "error: protect: got ('x',); only with --prune"),
        ("--keep 3", "error: keep: got 3; there is no such option; allowed are fetch, to, prune, protect, storage"),
        ("--storage.pth x", "error: storage.pth: got 'x'; there is no such field"),
        ("--storage.path gs://bucket", "error: storage.path: got 'gs://bucket'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(run: Run, tmp_path: Path, arguments: str, says: str) -> None:
    code, _, error = run(*arguments.split())
    assert code == 2, error
    assert says in error, error
    assert error.count("\n") == 1, error
    assert not list(tmp_path.iterdir())


def test_help_names_every_option(run: Run) -> None:
    code, output, _ = run("--help")
    assert code == 0
    for name in ("--fetch", "--to", "--prune", "--protect", "--storage.path"):
        assert name in output
