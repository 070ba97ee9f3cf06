import pytest

from distsens.errors import InputError
from distsens.storage import CheckpointError, Place, published

FILES = {"model.safetensors": b"weights", "experiment.yaml": b"name: a\n"}


def publish(storage: Place, name: str, robust: float = 0.5) -> str:
    return published.publish(storage, name, FILES, epoch=3, experiment="digest", metrics={"robust": robust})


def test_a_published_model_is_fetched_by_its_address(place: Place) -> None:
    url = publish(place, "run-1")
    model = published.fetch(url)
    assert model.files == FILES
    assert (model.manifest.epoch, model.manifest.experiment, model.manifest.metrics) == (3, "digest", {"robust": 0.5})
    assert url == f"{place.url}/models/run-1"
    assert place.keys() == [
        f"models/run-1/{name}" for name in ("experiment.yaml", "manifest.json", "model.safetensors")
    ]


def test_publishing_again_replaces_the_model_whole(place: Place) -> None:
    publish(place, "run-1")
    url = published.publish(place, "run-1", {"other": b"x"}, epoch=4, experiment="", metrics={})
    assert published.fetch(url).files == {"other": b"x"}
    assert len(place.keys()) == 2


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("model.safetensors", b"Weights", "model.safetensors: its SHA-256 is not the one in the manifest"),
        ("model.safetensors", None, "model.safetensors: is missing"),
        ("manifest.json", None, "manifest.json: is missing"),
    ],
)
def test_a_damaged_model_is_refused(place: Place, name: str, content: bytes | None, fault: str) -> None:
    url = publish(place, "run-1")
    key = f"models/run-1/{name}"
    place.delete(key) if content is None else place.put(key, content)
    with pytest.raises(CheckpointError, match=f"^checkpoint {url}: {fault}"):
        published.fetch(url)


def test_models_are_listed_from_the_oldest_on_without_the_incomplete(place: Place) -> None:
    assert published.models(place) == {}
    for name in ("c", "a", "d", "b"):
        publish(place, name)
    place.delete("models/d/manifest.json")
    assert list(published.models(place)) == ["c", "a", "b"]
    publish(place, "c", robust=0.75)
    assert [(name, model.metrics["robust"]) for name, model in published.models(place).items()] == [
        ("a", 0.5),
        ("b", 0.5),
        ("c", 0.75),
    ]


def test_prune_keeps_the_newest_and_the_protected(place: Place) -> None:
    place.put("run-1/run.json", b"")
    for name in ("c", "a", "d", "b"):
        publish(place, name)
    published.prune(place, keep=2, protect=["c"])
    assert list(published.models(place)) == ["c", "d", "b"]
    assert {key.split("/")[1] for key in place.keys("models")} == {"b", "c", "d"}
    published.prune(place, keep=7)
    assert list(published.models(place)) == ["c", "d", "b"]
    assert place.get("run-1/run.json") == b""


def test_a_model_needs_a_name_of_one_part_and_prune_something_to_keep(place: Place) -> None:
    with pytest.raises(InputError, match="one part"):
        publish(place, "a/b")
    with pytest.raises(InputError, match="1 or more"):
        published.prune(place, keep=0)
    assert place.keys() == []
