"""Every kind of address leads to the same classifier, verified; a wrong one to one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from distsens import assembly
from distsens.errors import InputError
from distsens.evaluation import Architecture, Subject, find_subject, said_of, selected_epoch, split_factory
from distsens.experiment import Experiment
from distsens.models import state_to_bytes
from distsens.storage import Checkpoints, FileRecord, Place, RunRecord, open_place, published, write_run
from distsens.tracking import TrackedRun
from distsens.training import WEIGHTS, EpochRecord, TrainingState, weights_to_bytes

UseS3 = Callable[[Mapping[str, str]], str]

SHAPE, CLASSES = (1, 8, 8), 10
EXPERIMENT = Experiment.parse(
    {"name": "mine", "model": {"name": "lenet5", "mean": [0.3], "std": [0.5]}, "threat": {"eps": 0.1}}
)
ROBUST = {1: 0.2, 2: 0.6, 3: 0.4}
BEST, LAST = 2, 3


def classifier(epoch: int) -> nn.Module:
    """What the training had after an epoch."""
    return assembly.build_model(EXPERIMENT.model_copy(update={"seed": epoch}), SHAPE, CLASSES)


def weights(epoch: int) -> bytes:
    return weights_to_bytes(classifier(epoch))


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, {"validation/robust_accuracy": ROBUST.get(epoch, 0.0), "validation/clean_accuracy": 0.9})


def stored_run(storage: Place, name: str = "mine-1") -> Place:
    """A run of three epochs as a training leaves it, with its model published."""
    run = storage.child(name)
    write_run(run, RunRecord(EXPERIMENT.model_dump(mode="json"), "id-in-mlflow"))
    for epoch in ROBUST:
        model = classifier(epoch)
        history = [record(earlier) for earlier in range(epoch + 1)]
        state = TrainingState(model, torch.optim.SGD(model.parameters(), lr=1.0), history=history)
        Checkpoints(run).save(epoch, state.to_files(), experiment=EXPERIMENT.digest(), metrics=history[-1].metrics)
    files = {WEIGHTS: weights(BEST), "experiment.yaml": EXPERIMENT.to_yaml().encode()}
    published.publish(storage, name, files, epoch=BEST, experiment=EXPERIMENT.digest(), metrics={})
    return run


@pytest.fixture
def storage(tmp_path: Path) -> Place:
    return open_place(str(tmp_path / "runs"))


@pytest.fixture
def run(storage: Place) -> Place:
    return stored_run(storage)


def path(place: Place) -> str:
    return place.url.removeprefix("file://")


def refusal(address: object, **options: Any) -> InputError:
    with pytest.raises(InputError) as raised:
        find_subject(str(address), **options)
    assert "\n" not in str(raised.value)
    return raised.value


def check_is_of(epoch: int, subject: Subject) -> None:
    """It is the classifier that the training had after the epoch, and everything about it is known."""
    assert subject.weights == weights(epoch)
    assert (subject.epoch, subject.run, subject.name) == (epoch, "mine-1", "mine-1")
    assert subject.experiment == EXPERIMENT
    assert subject.architecture == Architecture("lenet5", (0.3,), (0.5,))
    expected = classifier(epoch).state_dict()
    built = subject.build(SHAPE, CLASSES).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in built.items())


# A run's folder, checkpoints and published models.


@pytest.mark.parametrize(
    ("suffix", "epoch"),
    [
        ("", BEST),
        ("/", BEST),
        ("#best", BEST),
        ("#last", LAST),
        ("#1", 1),
        ("#2", BEST),
        ("/checkpoints/epoch-0001", 1),
        ("/checkpoints/epoch-0003/", LAST),
    ],
)
def test_a_run_means_its_best_epoch_and_others_are_named(run: Place, suffix: str, epoch: int) -> None:
    for start in (path(run), run.url):
        subject = find_subject(start + suffix)
        check_is_of(epoch, subject)
        assert (subject.address, subject.mlflow_run_id, subject.notices) == (start + suffix, "id-in-mlflow", ())


def test_a_run_is_found_by_a_relative_path(run: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_is_of(BEST, find_subject("runs/mine-1"))


def test_a_published_model_is_the_best_epoch(run: Place, storage: Place) -> None:
    subject = find_subject(f"{path(storage)}/models/mine-1")
    check_is_of(BEST, subject)
    assert subject.mlflow_run_id == "id-in-mlflow"
    storage.delete("mine-1")
    subject = find_subject(f"{path(storage)}/models/mine-1")
    check_is_of(BEST, subject)
    assert subject.mlflow_run_id is None


@pytest.mark.parametrize("suffix", ["mine-1", "mine-1#last", "mine-1/checkpoints/epoch-0001", "models/mine-1"])
def test_the_same_is_found_in_a_bucket(suffix: str, moto: dict[str, str], use_s3: UseS3) -> None:
    storage = open_place(f"{use_s3(moto)}/team")
    stored_run(storage)
    epoch = 1 if suffix.endswith("1") and "epoch" in suffix else LAST if "#" in suffix else BEST
    subject = find_subject(f"{storage.url}/{suffix}")
    check_is_of(epoch, subject)
    assert subject.mlflow_run_id == "id-in-mlflow"


def test_a_checkpoint_that_was_copied_from_its_run_needs_a_factory(run: Place, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    Path(path(run), "checkpoints", "epoch-0001").rename(copied)
    assert refusal(copied).field == "factory"
    subject = find_subject(str(copied), factory="lenet5")
    assert (subject.name, subject.epoch, subject.run, subject.experiment) == ("copied", 1, None, None)
    assert subject.architecture.mean == pytest.approx((0.3,))
    subject.build(SHAPE, CLASSES)


@pytest.mark.parametrize("file", ["checkpoints/epoch-0002/model.safetensors", "checkpoints/epoch-0002/manifest.json"])
def test_a_best_epoch_that_is_damaged_is_refused_rather_than_replaced(run: Place, file: str) -> None:
    run.put(file, run.get(file)[:-20])
    error = refusal(path(run))
    assert error.field == "model"
    assert "checkpoint file://" in error.allowed
    assert "epoch-0002" in error.allowed
    check_is_of(LAST, find_subject(f"{path(run)}#last"))


def test_a_newest_checkpoint_that_is_incomplete_is_passed_over_with_a_notice(run: Place) -> None:
    run.delete("checkpoints/epoch-0003/manifest.json")
    for suffix in ("", "#last"):
        subject = find_subject(path(run) + suffix)
        check_is_of(BEST, subject)
        assert len(subject.notices) == 1
        assert "epoch-0003: manifest.json: is missing" in subject.notices[0]


def test_a_damaged_published_model_is_refused(run: Place, storage: Place) -> None:
    storage.put("models/mine-1/model.safetensors", weights(LAST))
    assert "its SHA-256 is not the one in the manifest" in refusal(f"{path(storage)}/models/mine-1").allowed


def test_a_run_whose_record_is_damaged_is_refused(run: Place) -> None:
    record = run.get("run.json")
    run.put("run.json", record[:-9])
    assert "its run.json is damaged" in refusal(path(run)).allowed
    run.put("run.json", record.replace(b'"threat"', b'"threats"'))
    assert "its run.json is not of this version (threats: " in refusal(path(run)).allowed


def test_an_epoch_that_is_not_kept_names_those_that_are(run: Place) -> None:
    assert refusal(f"{path(run)}#7").allowed == "the run keeps no epoch 7, but [1, 2, 3]"


def test_a_run_without_a_checkpoint_is_refused(run: Place) -> None:
    run.delete("checkpoints")
    for suffix in ("", "#last"):
        assert refusal(path(run) + suffix).allowed == "the run has no checkpoint yet"


def test_a_folder_without_anything_of_ours_is_refused(tmp_path: Path) -> None:
    for address in (tmp_path, tmp_path / "absent", tmp_path / "absent" / "checkpoints" / "epoch-0001"):
        error = refusal(address)
        assert (error.field, error.value) == ("model", str(address))
        assert "there is no run (with a run.json)" in error.allowed


@pytest.mark.parametrize("address", ["https://example.org/model", "s3://Not/a bucket", ""])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    assert refusal(address).field == "model"


def test_a_bucket_that_cannot_be_read_is_told_in_one_line(moto: dict[str, str], use_s3: UseS3) -> None:
    use_s3(moto)
    assert "there is no such bucket" in refusal("s3://no-such-bucket/mine-1").allowed


@pytest.mark.parametrize(
    ("option", "value"), [("factory", "small_cnn"), ("mean", (0.3,)), ("std", (0.5,)), ("small_images", True)]
)
def test_settings_of_a_run_are_its_own(run: Place, option: str, value: object) -> None:
    error = refusal(path(run), **{option: value})
    assert (error.field, error.value) == (option, value)
    assert "leave it out" in error.allowed


# Files of weights.


def saved(content: Any, file: Path) -> Path:
    if file.suffix == ".safetensors":
        file.write_bytes(state_to_bytes(content))
    else:
        torch.save(content, file)
    return file


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".PT", ".pth.tar", ".ckpt", ".bin", ".weights", ""])
def test_a_whole_classifier_in_a_file_brings_its_own_normalisation(suffix: str, tmp_path: Path) -> None:
    model = classifier(1)
    subject = find_subject(str(saved(model.state_dict(), tmp_path / f"theirs{suffix}")), factory="lenet5")
    assert (subject.name, subject.run, subject.experiment) == ("theirs", None, None)
    assert subject.architecture.mean == pytest.approx((0.3,))
    images = torch.rand(2, *SHAPE)
    torch.testing.assert_close(subject.build(SHAPE, CLASSES)(images), model.eval()(images))


def test_a_networks_weights_take_the_normalisation_that_is_given(tmp_path: Path) -> None:
    network = nn.DataParallel(classifier(1).network)  # type: ignore[arg-type]
    file = saved({"epoch": 9, "state_dict": network.state_dict()}, tmp_path / "theirs.pt")
    assert find_subject(str(file), factory="lenet5").architecture == Architecture("lenet5", (0.0,), (1.0,))
    subject = find_subject(str(file), factory="lenet5", mean=[0.3], std=[0.5])
    images = torch.rand(2, *SHAPE)
    torch.testing.assert_close(subject.build(SHAPE, CLASSES)(images), classifier(1).eval()(images))


def test_the_digest_of_a_safetensors_file_is_its_own_and_that_of_others_repeats(tmp_path: Path) -> None:
    state = dict(classifier(1).state_dict())
    file = saved(state, tmp_path / "a.safetensors")
    assert find_subject(str(file), factory="lenet5").sha256 == FileRecord.of(file.read_bytes()).sha256
    shuffled = dict(reversed(state.items()))
    first, second = (saved(content, tmp_path / name) for content, name in ((state, "a.pt"), (shuffled, "b.pth")))
    assert find_subject(str(first), factory="lenet5").sha256 == find_subject(str(second), factory="lenet5").sha256


def test_a_file_in_a_bucket_is_read(moto: dict[str, str], use_s3: UseS3) -> None:
    bucket = use_s3(moto)
    open_place(bucket).put("theirs/a.safetensors", weights(1))
    assert find_subject(f"{bucket}/theirs/a.safetensors", factory="lenet5").weights == weights(1)
    assert "No such file" in refusal(f"{bucket}/theirs/b.safetensors", factory="lenet5").allowed


def test_a_file_needs_a_factory(tmp_path: Path) -> None:
    error = refusal(saved(classifier(1).state_dict(), tmp_path / "a.pt"))
    assert (error.field, error.value) == ("factory", None)


def test_a_file_of_several_weights_says_which_are_taken_and_lets_others_be_named(tmp_path: Path) -> None:
    raw, average = (dict(classifier(epoch).state_dict()) for epoch in (1, 2))
    file = saved({"state_dict": raw, "state_dict_ema": average}, tmp_path / "both.pth.tar")
    subject = find_subject(str(file), factory="lenet5")
    assert subject.notices == (
        f"{file} holds state_dict_ema beside state_dict, which is taken: {file}#state_dict_ema names the other",
    )
    assert (subject.name, subject.weights) == ("both", weights(1))
    subject = find_subject(f"{file}#state_dict_ema@lenet5")
    assert (subject.name, subject.weights, subject.notices) == ("both-state_dict_ema", weights(2), ())
    assert "with the keys state_dict, state_dict_ema" in refusal(f"{file}#ema", factory="lenet5").allowed


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("a.pt@nets:small", ("a.pt", "nets:small")),
        ("a.PTH.TAR@lenet5", ("a.PTH.TAR", "lenet5")),
        ("a.pt@torchvision:resnet50", ("a.pt", "torchvision:resnet50")),
        ("a.pt@package.module:Class.make", ("a.pt", "package.module:Class.make")),
        ("runs@2/a.pt@wrn10_1", ("runs@2/a.pt", "wrn10_1")),
        ("a@1.pt@lenet5", ("a@1.pt", "lenet5")),
        ("a.pt#ema@lenet5", ("a.pt#ema", "lenet5")),
        ("s3://bucket/a.pt@nets:small", ("s3://bucket/a.pt", "nets:small")),
        ("here@lenet5", ("here", "lenet5")),
        # What an @ belongs to otherwise.
        ("models:/name@champion", None),
        ("models:/net.pt@champion", None),
        ("runs:/0a1b@lenet5", None),
        ("runs@2/a.pt", None),
        ("s3://user@bucket/a.pt", None),
        ("s3://bucket/run@lenet5", None),
        ("https://user@host/a.pt", None),
        ("user@host:net.pt", None),
        ("nowhere@lenet5", None),
        ("a.pt@", None),
        ("a.pt@v2.pt", None),
        ("there.pt@lenet5", None),
        ("folder@lenet5", None),
        ("@lenet5", None),
        ("", None),
        ("x" * 5000 + "@lenet5", None),
    ],
)
def test_a_factory_behind_an_at_sign_is_told_from_every_other_at_sign(
    address: str, parts: tuple[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.pt@lenet5").touch()
    for folder in ("here", "folder", "folder@lenet5"):
        (tmp_path / folder).mkdir()
    assert split_factory(address) == (parts or (address, None))


def test_a_factory_of_its_own_comes_before_that_of_all_files_and_takes_their_normalisation(tmp_path: Path) -> None:
    file = saved(classifier(1).network.state_dict(), tmp_path / "a.pt")  # type: ignore[union-attr, operator]
    subject = find_subject(f"{file}@lenet5", factory="small_cnn", mean=[0.3], std=[0.5], small_images=True)
    assert subject.architecture == Architecture("lenet5", (0.3,), (0.5,))
    assert (subject.name, subject.address) == ("a", str(file))
    subject = find_subject(f"{file}@torchvision:resnet18", small_images=True)
    assert subject.architecture.small_images


def test_a_run_has_no_factory_of_its_own(run: Place) -> None:
    error = refusal(f"{path(run)}@small_cnn")
    assert (error.field, error.value) == ("factory", "small_cnn")
    assert find_subject(f"{path(run)}@lenet5").weights == weights(BEST), "it may be repeated"


def test_what_is_said_of_files_is_said_of_all_of_them_and_of_no_run_beside_them() -> None:
    said = {"factory": "lenet5", "mean": (0.5,)}
    beside = ["runs/r", "a.pt", "b.pt@nets:small"]
    assert said_of("runs/r", said, beside) == {"address": "runs/r"}
    assert said_of("b.pt@nets:small", said, beside) == {**said, "address": "b.pt@nets:small"}
    assert said_of("copied", said, ["copied", "other"]) == {**said, "address": "copied"}


# MLflow.


class Tracked:
    """A store with a run of ours, whose model is registered, and with models of others."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder}/mlflow.db"
        tracked = self.new_run({"distsens.run": "mine-1"})
        tracked.log_text("experiment.yaml", EXPERIMENT.to_yaml())
        self.log_manifest(tracked, weights(BEST))
        self.logged = tracked.log_model(classifier(BEST), np.zeros((2, *SHAPE), np.float32), weights(BEST))
        tracked.finish("FINISHED")
        self.run_id, self.client = tracked.run_id, MlflowClient(self.uri)
        assert self.logged is not None
        self.client.create_registered_model("ours")
        model_id = self.logged.removeprefix("models:/")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", self.uri)  # in which the registry itself looks the model up
            self.client.create_model_version("ours", self.logged, model_id=model_id)
        self.client.create_model_version("ours", f"runs:/{self.run_id}/model", run_id=self.run_id)
        self.client.set_registered_model_alias("ours", "champion", "1")

    def new_run(self, tags: Mapping[str, str]) -> TrackedRun:
        return TrackedRun.create(
            self.uri, experiment="tests", name="a run", params=EXPERIMENT.flat(), tags=tags, artifact_root=None
        )

    def log_manifest(self, tracked: TrackedRun, content: bytes) -> None:
        found = FileRecord.of(content)
        files = {WEIGHTS: {"size": found.size, "sha256": found.sha256}}
        tracked.log_json("checkpoint.json", {"url": "", "epoch": BEST, "experiment": "", "files": files})


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    return Tracked(tmp_path_factory.mktemp("tracked"))


@pytest.fixture
def new_run(tracked: Tracked) -> Iterator[TrackedRun]:
    run = tracked.new_run({})
    yield run
    run.finish("FINISHED")


@pytest.mark.parametrize(
    "address",
    [
        "runs:/{run}",
        "runs:/{run}/",
        "runs:/{run}/model",
        "runs:/{run}/weights/model.safetensors",
        "{logged}",
        "models:/ours/1",
        "models:/ours/2",
        "models:/ours@champion",
    ],
)
def test_every_address_in_mlflow_leads_to_the_weights_that_the_run_logged(address: str, tracked: Tracked) -> None:
    address = address.format(run=tracked.run_id, logged=tracked.logged)
    subject = find_subject(address, tracking_uri=tracked.uri)
    check_is_of(BEST, subject)
    assert (subject.address, subject.mlflow_run_id, subject.notices) == (address, tracked.run_id, ())


def test_the_store_may_come_from_the_environment(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert refusal(f"runs:/{tracked.run_id}").field == "tracking.uri"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.uri)
    check_is_of(BEST, find_subject(f"runs:/{tracked.run_id}"))


def test_a_run_without_weights_is_refused(tracked: Tracked, new_run: TrackedRun) -> None:
    error = refusal(f"runs:/{new_run.run_id}", tracking_uri=tracked.uri)
    assert error.field == "model"
    assert "not a model that a training of this project logged" in error.allowed


def test_a_registered_model_of_others_is_refused(
    tracked: Tracked, new_run: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tracked.client.get_run(new_run.run_id).info.experiment_id
    theirs = tracked.client.create_logged_model(experiment, "theirs", new_run.run_id)
    tracked.client.finalize_logged_model(theirs.model_id, "READY")
    tracked.client.create_registered_model("others")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.uri)
    tracked.client.create_model_version("others", theirs.model_uri, model_id=theirs.model_id)
    tracked.client.create_model_version("others", "s3://somewhere/model")
    for address in (theirs.model_uri, "models:/others/1", "models:/others/2"):
        error = refusal(address, tracking_uri=tracked.uri)
        assert (error.field, error.value) == ("model", address)
        assert "not a model that a training of this project logged" in error.allowed


@pytest.mark.parametrize(
    "address",
    [
        "runs:/0123456789abcdef0123456789abcdef",
        "models:/ours/77",
        "models:/ours@nobody",
        "models:/nothing/1",
        "models:/m-0123456789abcdef0123456789abcdef",
        "models:/ours",
        "models:/ours/latest",
        "runs:/",
        "runs:/abc/other/path",
    ],
)
def test_an_address_in_mlflow_that_leads_nowhere_is_refused(address: str, tracked: Tracked) -> None:
    error = refusal(address, tracking_uri=tracked.uri)
    assert (error.field, error.value) == ("model", address)


def test_weights_that_are_not_those_of_the_logged_manifest_are_refused(tracked: Tracked, new_run: TrackedRun) -> None:
    tracked.log_manifest(new_run, weights(LAST))
    new_run.log_text("experiment.yaml", EXPERIMENT.to_yaml())
    new_run.log_bytes("weights/model.safetensors", weights(BEST))
    error = refusal(f"runs:/{new_run.run_id}", tracking_uri=tracked.uri)
    assert "weights/model.safetensors is damaged: its SHA-256 is not the one in the manifest" in error.allowed
    new_run.log_text("checkpoint.json", "{}")
    error = refusal(f"runs:/{new_run.run_id}", tracking_uri=tracked.uri)
    assert error.allowed == "its artifact checkpoint.json is damaged"


def test_weights_logged_without_an_experiment_need_a_factory(tracked: Tracked, new_run: TrackedRun) -> None:
    new_run.log_bytes("weights/model.safetensors", weights(BEST))
    address = f"runs:/{new_run.run_id}"
    assert refusal(address, tracking_uri=tracked.uri).field == "factory"
    subject = find_subject(address, factory="lenet5", tracking_uri=tracked.uri)
    assert (subject.name, subject.experiment, subject.mlflow_run_id) == ("a run", None, new_run.run_id)
    assert "no digest" in subject.notices[0]
    subject.build(SHAPE, CLASSES)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a list\n", "damaged"),
        ("a: b: c\n", "damaged"),
        ("threat: {eps: 8}\n", "not of this version (threat.eps: "),
        ("future: 1\n", "not of this version (future: "),
    ],
)
def test_an_experiment_that_this_version_cannot_read_is_refused(
    text: str, reason: str, tracked: Tracked, new_run: TrackedRun
) -> None:
    new_run.log_bytes("weights/model.safetensors", weights(BEST))
    new_run.log_text("experiment.yaml", text)
    error = refusal(f"runs:/{new_run.run_id}", tracking_uri=tracked.uri)
    assert error.allowed.startswith(f"its experiment.yaml is {reason}")


def test_a_store_that_is_not_there_is_not_created(tmp_path: Path) -> None:
    error = refusal("runs:/abc", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert (error.field, error.allowed) == ("tracking.uri", "there is no store yet")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_told_within_seconds() -> None:
    assert "does not answer as an MLflow server" in refusal("runs:/abc", tracking_uri="http://127.0.0.1:1").allowed


@pytest.mark.parametrize(
    ("address", "epoch"),
    [
        ("runs/mine-1", "best"),
        ("runs/mine-1#best", "best"),
        ("s3://bucket/mine-1#last", "last"),
        ("runs/mine-1#12", "12"),
        ("runs/mine-1#012", "12"),
        ("runs/mine-1/checkpoints/epoch-0012", "12"),
        ("runs/mine-1/checkpoints/epoch-0000/", "0"),
        ("models:/mine@champion", "best"),
    ],
)
def test_an_address_says_which_epoch_it_selects(address: str, epoch: str) -> None:
    assert selected_epoch(address) == epoch
