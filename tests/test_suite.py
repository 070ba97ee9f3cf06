"""An examination becomes the attacks, the judgement and the images that its words say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from distsens.attacks import APGD, FAB, Square
from distsens.errors import InputError
from distsens.evaluation import Adaptive, LastIterate, Pool, Transfer
from distsens.examination import Examination
from distsens.experiment import Experiment
from distsens.suite import (
    ATTACKS,
    Materials,
    attack_names,
    attack_settings,
    build_attacks,
    build_judgement,
    build_probe_attack,
    build_threat,
    chosen_numbers,
    families,
    load_judged,
)

POOL = Pool(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))


def examination(**fields: Any) -> Examination:
    return Examination.parse({"threat": {"norm": "linf", "eps": 0.1}, "data": {"name": "digits"}, **fields})


def materials(training: Experiment | None = None, source: nn.Module | None = None) -> Materials:
    return Materials(10, training, POOL, source)


def built(name: str, **fields: Any) -> Any:
    return build_attacks(examination(attacks=[name], **fields), materials(source=nn.Flatten()))[name]


def test_autoattack_is_its_four_attacks_and_a_name_counts_once() -> None:
    assert attack_names(["autoattack"]) == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert attack_names(["square", "autoattack", "pgd"]) == ("square", "apgd-ce", "apgd-t", "fab-t", "pgd")
    with pytest.raises(InputError, match=r"attacks: .*allowed are autoattack"):
        attack_names(["autoatack"])


@pytest.mark.parametrize(("norm", "restarts", "targets"), [("linf", 1, 9), ("l2", 1, 9), ("l1", 5, 5)])
def test_autoattack_has_the_settings_of_its_standard_version(norm: str, restarts: int, targets: int) -> None:
    judged = examination(threat={"norm": norm, "eps": 1.0}, attacks=["autoattack"])
    threat = build_threat(judged)
    assert build_attacks(judged, materials()) == {
        "apgd-ce": APGD(threat, loss="ce", steps=100, restarts=restarts),
        "apgd-t": APGD(threat, loss="dlr", steps=100, restarts=1, targets=targets),
        "fab-t": FAB(threat, steps=100, restarts=1, targets=9),
        "square": Square(threat, queries=5000, restarts=1),
    }


def test_no_attack_aims_at_more_classes_than_there_are() -> None:
    four = Materials(4, None, POOL, None)
    attacks = build_attacks(examination(attacks=["apgd-t", "fab-t"]), four)
    assert [attack.targets for attack in attacks.values()] == [3, 3]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("attacks", "classes", "refused"),
    [
        ("autoattack", 3, "'apgd-t'; its loss .* needs 4 classes or more, and there are 3; take apgd-ce"),
        ("autoattack-rand", 2, "'apgd-dlr-eot'; its loss .* needs 3 classes or more, and there are 2"),
        ("apgd-dlr", 2, "'apgd-dlr'; its loss"),
    ],
)
def test_a_loss_that_compares_more_classes_than_there_are_is_refused(attacks: str, classes: int, refused: str) -> None:
    few = Materials(classes, None, POOL, None)
    with pytest.raises(InputError, match=f"attacks: got {refused}"):
        build_attacks(examination(attacks=[attacks]), few)
    build_attacks(examination(attacks=["apgd-ce", "pgd-margin", "fab-t", "square"]), few)
    build_attacks(examination(attacks=[attacks]), Materials(classes + 1, None, POOL, None))


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_attack_of_the_list_stays_in_the_ball_and_breaks_a_classifier_without_margin(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    images = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        labels: Tensor = model(images).argmax(1)
    transfer = "model" if name == "transfer" else None
    ball = {"norm": "l2", "eps": 2.0} if name == "cw" else {"norm": "linf", "eps": 0.4}
    judged = examination(attacks=[name], transfer=transfer, threat=ball)
    pool = Pool(images, labels)
    found = build_attacks(judged, Materials(10, None, pool, model))[name](model, images, labels)
    assert (build_threat(judged).distance(images, found.adversarial) <= judged.threat.eps + 1e-6).all()
    with torch.no_grad():
        assert (model(found.adversarial).argmax(1) != labels).all()


def test_the_settings_of_every_attack_can_be_written_down_and_say_what_it_does() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for name in ATTACKS:
        ball = {"norm": "l2", "eps": 0.5}
        judged = examination(attacks=[name], transfer="model" if name == "transfer" else None, threat=ball)
        attack = build_attacks(judged, materials(source=model))[name]
        found = attack_settings(attack)
        assert json.loads(json.dumps(found)) == found
        assert found["kind"] == type(attack).__name__
        assert {"kind": "Threat", **ball} in (found.get("threat"), found.get("attack", {}).get("threat"))
    apgd = attack_settings(built("apgd-t"))
    assert (apgd["loss"], apgd["steps"], apgd["restarts"], apgd["targets"]) == ("dlr", 100, 1, 9)
    assert attack_settings(built("square"))["queries"] == 5000
    assert attack_settings(built("pgd-margin"))["attack"]["loss"] == "margin"
    assert "pool" not in attack_settings(built("adaptive"))


def test_gradient_attacks_take_the_steps_of_the_examination() -> None:
    fields = {"pgd": {"steps": 7, "step_size": 0.02, "restarts": 3}}
    attack = built("pgd", **fields).attack
    assert (attack.steps, attack.step_size, attack.restarts) == (7, 0.02, 3)
    assert built("mim", **fields).attack.restarts == 1
    assert isinstance(built("pgd-margin", **fields), LastIterate)
    assert build_probe_attack(examination(**fields)).restarts == 1


def test_of_neurons_that_were_chosen_at_random_the_adaptive_attack_knows_the_trainings_seed() -> None:
    training = Experiment.parse({"seed": 7, "stabilize": {"selection": "random"}})
    attack = build_attacks(examination(attacks=["adaptive"], seed=3), materials(training))["adaptive"]
    assert isinstance(attack, Adaptive)
    assert attack.stabilizing.seed == 7


def test_the_adaptive_attack_attacks_what_the_training_stabilized() -> None:
    sns = {"ratio": 0.25, "selection": "bottom", "distance": "l2", "measure": "relative", "layers": ["conv*"]}
    training = Experiment.parse({"stabilize": {"weight": 1.0, **sns}})
    attack = build_attacks(examination(attacks=["adaptive"]), materials(training))["adaptive"]
    assert isinstance(attack, Adaptive)
    known = attack.stabilizing
    assert (known.ratio, known.selection, known.distance, known.measure) == (0.25, "bottom", "l2", "relative")
    assert attack.layers == ("conv*",)


def test_transfer_needs_a_model_to_come_from() -> None:
    assert isinstance(built("transfer", transfer="other"), Transfer)
    with pytest.raises(InputError, match="transfer"):
        build_attacks(examination(attacks=["transfer"]), materials())


def test_a_judgement_has_a_ball_for_each_radius_and_every_severity_of_a_corruption() -> None:
    judgement = build_judgement(examination(eps_curve=[0.05, 0.2], corruptions=["fog"]), materials())
    assert sorted(judgement.curve) == [0.05, 0.2]
    assert [ball.eps for ball, _ in judgement.curve.values()] == [0.05, 0.2]
    assert list(judgement.corruptions) == [("fog", severity) for severity in range(1, 6)]


def test_corruptions_are_named_or_all() -> None:
    assert len(families(["all"])) >= 15
    with pytest.raises(InputError, match="corruptions"):
        families(["rain"])


def test_what_no_training_says_must_be_said() -> None:
    with pytest.raises(InputError, match=r"threat: .*name threat.norm and threat.eps"):
        build_threat(examination(threat={}))
    with pytest.raises(InputError, match=r"data.name: .*name the data set"):
        load_judged(examination(data={}), None)


def test_of_fewer_images_than_there_are_every_class_has_its_share_unless_the_first_are_wanted(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(4), [240, 240, 260, 260])
    images = np.arange(1000, dtype=np.uint32).view(np.uint8).reshape(1000, 2, 2)  # each another
    np.savez(tmp_path / "sorted.npz", images=images, labels=labels)
    data = {"name": "npz", "root": tmp_path / "sorted.npz", "limit": 500}
    dataset, chosen = load_judged(examination(data=data), None)
    assert np.bincount(chosen.labels).tolist() == [120, 120, 130, 130]
    assert load_judged(examination(data=data, seed=7), None)[1].digest() == chosen.digest()
    numbers = chosen_numbers(examination(data=data).data, dataset.test.labels)
    assert np.array_equal(np.asarray(dataset.test.images)[numbers], chosen.images)
    first = load_judged(examination(data={**data, "choice": "first"}), None)[1]
    assert np.array_equal(np.asarray(first.images)[:, 0], images[:500])
    assert [examination(data=one).data.chosen for one in ({}, data, {**data, "choice": "first"})] == [
        "",
        ", stratified by class",
        ", the first ones",
    ]


def test_without_a_limit_the_whole_split_is_judged() -> None:
    dataset, whole = load_judged(examination(), None)
    assert len(whole) == len(dataset.test)
    with pytest.raises(InputError, match=r"data.limit: .*has 360 images"):
        load_judged(examination(data={"name": "digits", "limit": 361}), None)


@pytest.mark.parametrize(("images", "says"), [([3, 5], "places 0 to 4"), ([-1], "or equal to 0"), ([3, 3], "once")])
def test_images_that_are_not_there_or_twice_cannot_be_judged(images: list[int], says: str) -> None:
    with pytest.raises(InputError, match=f"data.images: .*{says}"):
        load_judged(examination(data={"name": "digits", "limit": 5, "images": images}), None)


def test_anybodys_images_are_judged_whole_but_for_a_pool_that_adaptive_needs(tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", images=np.zeros((8, 8, 8), np.uint8), labels=np.arange(8) % 4)
    data = {"name": "npz", "root": tmp_path / "few.npz"}
    for attacks, judged, pool in (["pgd"], 8, 0), (["adaptive"], 7, 1):
        dataset, split = load_judged(examination(data=data, attacks=attacks), None)
        assert (len(split), len(dataset.validation)) == (judged, pool)
    with pytest.raises(InputError, match=r"data.split: got 'train'; there are no such images; name .*test"):
        load_judged(examination(data={**data, "split": "train"}), None)
    with pytest.raises(InputError, match=r"data.classes: got 10; is for data.name npz"):
        load_judged(examination(data={"name": "digits", "classes": 10}), None)
    np.savez(tmp_path / "one.npz", images=np.zeros((1, 8, 8), np.uint8), labels=[0])
    with pytest.raises(InputError, match=r"data.root: .*one.npz'; has too few images for the attack adaptive"):
        load_judged(examination(data={"name": "npz", "root": tmp_path / "one.npz"}, attacks=["adaptive"]), None)
    with pytest.raises(InputError, match="attacks: got 'adaptive'; it needs images beside"):
        build_attacks(examination(attacks=["adaptive"]), Materials(4, None, None, None))


def test_a_folder_that_was_trained_on_keeps_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for label in range(2):
        (tmp_path / "set" / str(label)).mkdir(parents=True)
        for number in range(10):
            pixels = np.full((4, 4, 3), 10 * number + label, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / str(label) / f"{number}.png")
    training = Experiment.parse({"data": {"name": "folder", "root": tmp_path / "set", "validation_fraction": 0.25}})
    _, held_back = load_judged(Examination.parse({}).completed(training), training)
    _, whole = load_judged(examination(data={"name": "folder", "root": tmp_path / "set"}), None)
    assert (len(held_back), len(whole)) == (4, 20)
