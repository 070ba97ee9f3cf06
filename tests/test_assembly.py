from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from distsens import assembly
from distsens.attacks import GradientAttack, Threat, margin
from distsens.data import Extra, ImageFiles, Source, load, steps_per_epoch
from distsens.errors import InputError
from distsens.experiment import Experiment, merge
from distsens.sensitivity import Stabilizing
from distsens.training import Alarm, EpochRecord, LearningRate, Plan, weights_to_bytes

LABELS = np.array([0, 1, 1, 1, 2, 2, 3, 3])


def of(**sections: Any) -> Experiment:
    return Experiment.parse(sections)


def test_data_are_in_the_recipes_folder_else_the_environments_else_the_current_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTSENS_DATA", raising=False)
    assert assembly.data_root(of()) == tmp_path / "data"
    monkeypatch.setenv("DISTSENS_DATA", "/of/environment")
    assert assembly.data_root(of()) == Path("/of/environment")
    assert assembly.data_root(of(data={"root": "own"})) == tmp_path / "own"
    monkeypatch.setenv("HOME", "/home/somebody")
    assert assembly.data_root(of(data={"root": "~/own"})) == Path("/home/somebody/own")


def test_data_are_split_as_the_experiment_says() -> None:
    experiment = of(seed=3, data={"limit": 200, "validation_fraction": "1/4"})
    expected = load("digits", Source(None), validation_fraction=0.25, seed=3, limit=200)
    found = assembly.load_data(experiment)
    assert found.digest() == expected.digest()
    assert (len(found.train), len(found.validation)) == (200, round(1437 / 4))


def test_a_folder_is_read_as_the_experiment_says(tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (number, 0, 0)).save(path)
    np.savez(tmp_path / "extra.npz", images=np.zeros((7, 4, 4, 3), np.uint8), labels=np.arange(7) % 2)
    told: list[str] = []
    fields = {"name": "folder", "root": str(tmp_path / "set"), "image_size": 4, "test_fraction": 0.25}
    dataset = assembly.load_data(of(data={**fields, "extra": str(tmp_path / "extra.npz")}), told.append)
    assert (dataset.shape, len(dataset.train), len(dataset.validation), len(dataset.test)) == ((3, 4, 4), 34, 3, 10)
    assert dataset.extra == 7
    assert told == ["read 40 of 40 images"]
    in_files = assembly.load_data(of(data={**fields, "memory": 0}))
    assert isinstance(in_files.train.images, ImageFiles)


def test_extra_images_have_their_part_of_every_batch_and_of_the_plan() -> None:
    assert assembly.build_extra(of(data={"extra_ratio": 0.7}), 0) == Extra()
    experiment = of(data={"extra_ratio": 0.7}, training={"batch_size": 20, "epochs": 3})
    extra = assembly.build_extra(experiment, 50)
    assert extra == Extra(50, 14)
    plan = assembly.build_plan(experiment, 120, LABELS, extra)
    assert plan.extra == extra
    assert plan.learning_rate.steps == 3 * (70 // 6)


@pytest.mark.parametrize("ratio", [0.01, 0.99])
def test_a_batch_without_one_kind_of_images_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match=r"data\.extra_ratio: .* leaves one kind without images in batches of 20"):
        assembly.build_extra(of(data={"extra_ratio": ratio}, training={"batch_size": 20}), 50)


def built(seed: int) -> nn.Module:
    model = {"name": "lenet5", "mean": [0.25], "std": ["1/2"]}
    return assembly.build_model(of(seed=seed, model=model), (1, 8, 8), 7)


def test_a_model_depends_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    first = built(1)
    torch.manual_seed(99)
    again, other = built(1), built(2)
    assert first(torch.rand(2, 1, 8, 8)).shape == (2, 7)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(first.parameters(), other.parameters(), strict=True))
    assert (first.mean.item(), first.std.item()) == (0.25, 0.5)
    assert first.network.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_model_starts_from_a_weights_file_whatever_the_seed(tmp_path: Path) -> None:
    trained = built(7)
    (tmp_path / "trained.safetensors").write_bytes(weights_to_bytes(trained))
    fields = {"name": "lenet5", "mean": [0.25], "std": ["1/2"], "weights": str(tmp_path / "trained.safetensors")}
    started = assembly.build_model(of(seed=1, model=fields), (1, 8, 8), 7)
    assert all(torch.equal(p, q) for p, q in zip(started.parameters(), trained.parameters(), strict=True))
    assert started.network.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_digest_without_a_weights_file_is_refused() -> None:
    with pytest.raises(InputError, match=r"there is no model\.weights to have it"):
        assembly.build_model(of(model={"weights_sha256": "0" * 64}), (1, 28, 28), 10)


def test_a_pinned_experiment_knows_its_weights_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("a.pt", b"one"), ("b.pt", b"one"), ("c.pt", b"other")):
        Path(name).write_bytes(content)
    a, b, c = (assembly.pin_files(of(model={"weights": name})) for name in ("a.pt", "b.pt", "c.pt"))
    assert a.model.weights == tmp_path / "a.pt"
    assert a.model.weights_sha256 == hashlib.sha256(b"one").hexdigest()
    assert a.digest() == b.digest() != c.digest()
    assert Experiment.parse(a.model_dump(mode="json")) == a
    Path("a.pt").unlink()
    assert assembly.pin_files(a) == a
    assert assembly.pin_files(of()) == of()


def test_a_pinned_experiment_knows_its_extra_images_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, label in (("a.npz", 1), ("b.npz", 1), ("c.npz", 2)):
        np.savez(name, images=np.zeros((3, 8, 8), np.uint8), labels=np.full(3, label))
    a, b, c = (assembly.pin_files(of(data={"extra": name})) for name in ("a.npz", "b.npz", "c.npz"))
    assert a.data.extra == tmp_path / "a.npz"
    assert a.digest() == b.digest() != c.digest()
    assert assembly.load_data(a).extra == 3
    Path("c.npz").rename("a.npz")
    with pytest.raises(InputError, match=r"data\.extra_sha256: got .*a\.npz is another file: its SHA-256 is"):
        assembly.load_data(a)
    Path("a.npz").unlink()
    assert assembly.pin_files(a) == a
    with pytest.raises(InputError, match=r"data\.extra: got .*a\.npz'; cannot be read"):
        assembly.load_data(a)
    with pytest.raises(InputError, match=r"there is no data\.extra to have it"):
        assembly.load_data(of(data={"extra_sha256": "0" * 64}))


def test_an_attack_has_the_experiments_threat_and_its_own_settings() -> None:
    experiment = of(
        threat={"norm": "l2", "eps": 0.5},
        test={"steps": 7, "step_size": 0.1, "random_start": "none", "restarts": 3, "precision": "bf16"},
    )
    assert assembly.build_attack(experiment, experiment.test) == GradientAttack(
        Threat("l2", 0.5), 7, 0.1, random_start="none", restarts=3, precision=torch.bfloat16
    )


def test_a_step_reaches_the_ball_two_and_a_half_times_by_default() -> None:
    experiment = of(threat={"eps": 0.2}, attack={"steps": 5})
    attack = assembly.build_attack(experiment, experiment.attack)
    assert attack == GradientAttack(Threat("linf", 0.2), 5, 2.5 * 0.2 / 5)
    assert (
        assembly.build_attack(of(threat={"eps": 0}, objective={"name": "standard"}), experiment.attack).step_size == 0
    )


def test_a_named_attack_has_its_papers_settings_and_the_recipes() -> None:
    experiment = of(
        threat={"norm": "l1", "eps": 6},
        attack={"name": "mim", "steps": 4, "momentum": 0.9, "l1_fraction": 0.05},
        validation={"name": "cw_pgd", "steps": 5, "restarts": 2},
    )
    threat = Threat("l1", 6.0)
    assert assembly.build_training_attack(experiment) == GradientAttack(
        threat, 4, 1.5, random_start="none", momentum=0.9, l1_fraction=0.05
    )
    assert assembly.build_attack(experiment, experiment.validation) == GradientAttack(
        threat, 5, 3.0, restarts=2, loss=margin
    )


@pytest.mark.parametrize(("name", "attack"), [("nat", "fgsm"), ("fast_at", "fast_fgsm"), ("trades", "pgd")])
def test_auto_is_the_attack_of_the_objectives_paper_in_training_and_pgd_elsewhere(name: str, attack: str) -> None:
    experiment = of()
    experiment = experiment.model_copy(update={"objective": experiment.objective.model_copy(update={"name": name})})
    named = of(attack={"name": attack})
    assert assembly.build_training_attack(experiment) == assembly.build_training_attack(named)
    assert assembly.build_attack(experiment, experiment.test) == GradientAttack(
        Threat("linf", 8 / 255), 20, 2.5 * 8 / 255 / 20
    )


def test_a_step_size_of_the_recipe_is_not_for_an_attack_of_one_step_that_auto_stands_for() -> None:
    for name in ("nat", "fast_at", "free_at"):
        given = of(attack={"step_size": 2 / 255}, objective={"name": name})
        assert assembly.build_training_attack(given) == assembly.build_training_attack(of(objective={"name": name}))
    longer = of(attack={"name": "fast_fgsm", "step_size": 2 / 255}, objective={"name": "fast_at"})
    assert assembly.build_training_attack(longer).step_size == 2 / 255


def test_an_attack_given_by_name_goes_before_that_of_the_paper() -> None:
    experiment = of(attack={"name": "bim", "steps": 2})
    experiment = experiment.model_copy(update={"objective": experiment.objective.model_copy(update={"name": "nat"})})
    assert assembly.build_training_attack(experiment) == GradientAttack(
        Threat("linf", 8 / 255), 2, 4 / 255, random_start="none"
    )


def test_fgsm_is_one_step_of_length_eps_from_the_image() -> None:
    expected = GradientAttack(Threat("linf", 0.3), steps=1, step_size=0.3, random_start="none")
    assert assembly.build_fgsm(of(threat={"eps": 0.3}, attack={"restarts": 4})) == expected


LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])


def parts_of(**objective: Any) -> dict[str, float]:
    """Parts of an objective's loss on three images and their twins, summed."""
    loss = assembly.build_objective(of(objective=objective)).loss
    return {part: values.sum().item() for part, values in loss(LOGITS, LOGITS.flip(0), torch.arange(3)).items()}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("standard", ["benign_ce"]),
        ("nat", ["benign_ce", "adversarial_ce"]),
        ("pgd_at", ["adversarial_ce"]),
        ("fast_at", ["adversarial_ce"]),
        ("free_at", ["adversarial_ce"]),
        ("alp", ["benign_ce", "adversarial_ce", "logit_pairing"]),
        ("trades", ["benign_ce", "robust_kl"]),
        ("mart", ["adversarial_bce", "robust_kl"]),
    ],
)
def test_an_objective_is_the_one_of_that_name(name: str, parts: list[str]) -> None:
    assert list(parts_of(name=name)) == parts


def test_only_trades_raises_the_divergence() -> None:
    raised = {
        name: assembly.build_objective(of(objective={"name": name})).against_benign
        for name in ("standard", "nat", "pgd_at", "fast_at", "free_at", "alp", "trades", "mart")
    }
    assert [name for name, divergence in raised.items() if divergence] == ["trades"]


@pytest.mark.parametrize(
    ("name", "part", "published"), [("alp", "logit_pairing", 0.5), ("trades", "robust_kl", 6), ("mart", "robust_kl", 5)]
)
def test_beta_weighs_the_second_term_as_the_paper_does_unless_told_otherwise(
    name: str, part: str, published: float
) -> None:
    one = parts_of(name=name, beta=1)[part]
    assert one > 0
    assert parts_of(name=name)[part] == pytest.approx(published * one)
    assert parts_of(name=name, beta=3)[part] == pytest.approx(3 * one)
    assert parts_of(name=name, beta=0)[part] == 0


def test_alpha_weighs_the_benign_half_of_nat() -> None:
    half, quarter = parts_of(name="nat"), parts_of(name="nat", alpha="1/4")
    assert quarter["benign_ce"] == pytest.approx(half["benign_ce"] / 2)
    assert quarter["adversarial_ce"] == pytest.approx(half["adversarial_ce"] * 3 / 2)


@pytest.mark.parametrize("name", ["standard", "nat", "pgd_at", "fast_at", "free_at", "alp", "trades"])
def test_label_smoothing_reaches_every_objective_that_has_a_cross_entropy(name: str) -> None:
    hard, smooth = parts_of(name=name), parts_of(name=name, label_smoothing=0.1)
    assert {part for part in hard if hard[part] != smooth[part]} == {part for part in hard if part.endswith("_ce")}


def test_a_stabilizer_is_built_where_it_weighs_something() -> None:
    neurons, cpu = {"a": 4}, torch.device("cpu")
    assert assembly.build_stabilizer(of(), neurons, cpu) is None
    settings = {
        "ratio": 0.3,
        "selection": "random",
        "distance": "cosine",
        "measure": "relative",
        "decay": 0.7,
        "pairs": 0.2,
    }
    stabilizer = assembly.build_stabilizer(of(seed=6, stabilize={"weight": 1, **settings}), neurons, cpu)
    assert stabilizer is not None
    assert stabilizer.settings == Stabilizing(**settings, seed=6)


def test_optimizers_take_their_settings() -> None:
    model = nn.Linear(2, 2)
    sgd = assembly.build_optimizer(of(training={"lr": 0.3, "momentum": 0.8, "weight_decay": 0.01}), model)
    plain = assembly.build_optimizer(of(training={"momentum": 0}), model)
    adamw = assembly.build_optimizer(of(training={"optimizer": "adamw", "lr": 0.2, "weight_decay": 0.05}), model)
    assert isinstance(sgd, torch.optim.SGD)
    assert isinstance(adamw, torch.optim.AdamW)
    assert {name: sgd.defaults[name] for name in ("lr", "momentum", "weight_decay", "nesterov")} == {
        "lr": 0.3,
        "momentum": 0.8,
        "weight_decay": 0.01,
        "nesterov": True,
    }
    assert plain.defaults["nesterov"] is False
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.2, 0.05)
    for optimizer in (sgd, plain, adamw):
        assert optimizer.param_groups[0]["params"] == list(model.parameters())


def test_the_average_decays_and_takes_the_buffers_along() -> None:
    model = nn.BatchNorm1d(2)
    assert assembly.build_average(of(), model) is None
    average = assembly.build_average(of(training={"ema_decay": 0.75}), model)
    assert average is not None
    for value in (0.0, 8.0):
        nn.init.constant_(model.weight, value)
        model.running_mean.fill_(value)
        average.update_parameters(model)
    assert average.module.weight.tolist() == [2.0, 2.0]
    assert average.module.running_mean.tolist() == [2.0, 2.0]


def test_a_plan_holds_what_the_loop_needs() -> None:
    experiment = of(
        seed=4,
        data={"augment": ["crop", "flip"]},
        threat={"eps": 0.3},
        stabilize={"weight": 2, "ratio": 0.4, "refresh_steps": 7, "warmup_start": 0.1, "warmup_end": 0.2},
        training={
            "epochs": 6,
            "batch_size": 30,
            "lr": 0.5,
            "schedule": "piecewise",
            "warmup": 0.05,
            "milestones": [0.4, 0.8],
            "drop": 0.2,
            "eps_warmup": 0.25,
            "patience": 2,
            "awp_gamma": 0.01,
            "awp_warmup": 0.125,
        },
        attack={"steps": 3},
        alarm={"action": "stop"},
    )
    assert assembly.build_plan(experiment, 100, LABELS) == Plan(
        epochs=6,
        batch_size=30,
        seed=4,
        learning_rate=LearningRate("piecewise", 0.5, 6 * steps_per_epoch(100, 30), 0.05, (0.4, 0.8), 0.2),
        eps=0.3,
        eps_warmup=0.25,
        sns_weight=2,
        sns_ramp=(0.1, 0.2),
        awp_gamma=0.01,
        awp_warmup=0.125,
        refresh_steps=7,
        ratio=0.4,
        augmentations=("crop", "flip"),
        chance=3 / 8,
        patience=2,
        alarm=assembly.build_alarm(experiment),
    )


@pytest.mark.parametrize(("schedule", "warmup"), [("onecycle", 0.3), ("cosine", 0), ("piecewise", 0), ("constant", 0)])
def test_only_onecycle_warms_up_by_default(schedule: str, warmup: float) -> None:
    def plan(**training: Any) -> Plan:
        return assembly.build_plan(of(training={"schedule": schedule, **training}), 1000, LABELS)

    assert plan().learning_rate.warmup == warmup
    assert plan(warmup=0.1).learning_rate.warmup == 0.1
    assert plan(warmup=0).learning_rate.warmup == 0


def test_precisions_are_autocast_types() -> None:
    assert assembly.dtype("fp32") is None
    assert assembly.dtype("bf16") is torch.bfloat16


def alarm(**sections: Any) -> Alarm | None:
    fields = {"attack": {"steps": 1}, "validation": {"steps": 5, "restarts": 2}, "threat": {"eps": 0.1}}
    return assembly.build_alarm(Experiment.parse(merge(fields, sections)))


def test_an_alarm_probes_with_the_validation_attack() -> None:
    probe = GradientAttack(Threat("linf", 0.1), 5, 0.05, restarts=2)
    assert alarm() == Alarm("warn", 0.2, 0.5, probe)
    assert alarm(alarm={"action": "stop", "gap": 0.3, "fall": 0.1}) == Alarm("stop", 0.3, 0.1, probe)


def test_there_is_no_alarm_where_it_could_not_sound_or_is_not_wanted() -> None:
    assert alarm(attack={"steps": 5}) is None
    assert alarm(attack={"steps": 4}) is not None
    assert alarm(objective={"name": "standard"}) is None
    assert alarm(alarm={"action": "none"}) is None


def test_the_training_attack_is_measured_for_the_alarm_up_to_a_rollback() -> None:
    watched = of(attack={"steps": 1, "step_size": 0.1}, validation={"steps": 5})
    untrained = EpochRecord(0, {})
    attacks = assembly.build_validation_attacks(watched, [untrained])
    assert list(attacks) == ["pgd", "training_attack"]
    assert attacks["training_attack"] == assembly.build_attack(watched, watched.attack)
    after = [untrained, EpochRecord(1, {"alarm/rolled_back_to": 0.0})]
    assert list(assembly.build_validation_attacks(watched, after)) == ["pgd"]
    assert list(assembly.build_validation_attacks(of(), [untrained])) == ["pgd"]
