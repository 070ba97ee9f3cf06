from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from distsens.data import Extra, ImageFiles, Source, augment, epoch_order, load, to_pixels
from distsens.randomness import sample_keys
from distsens.sensitivity import LayerSensitivity, selected_count
from distsens.training import (
    Batch,
    Progress,
    StepResult,
    TrainingState,
    TrainingStep,
    TrainingStoppedError,
    Watchers,
    train,
)
from tests.training.runs import Run, digits_run

STEPS = 8  # of 49 out of 400 images: eight images are left over every epoch
CHANGES: dict[str, Any] = {
    "training": {"epochs": 2, "awp_gamma": 0.02, "awp_warmup": 0.25},
    "stabilize": {"warmup_start": 0.5, "warmup_end": 1.0},
}


@dataclass
class Call:
    batch: Batch
    eps_factor: float
    sns_weight: float | None
    awp_gamma: float
    lr: float
    refreshed: bool
    after: dict[str, Tensor]


@dataclass
class RecordedStep(TrainingStep):
    """A real step that notes what it was called with, and what the parameters were afterwards."""

    calls: list[Call] = field(default_factory=list)
    _selected: object = None

    def __call__(self, batch: Batch, **now: Any) -> StepResult:
        lr = self.optimizer.param_groups[0]["lr"]
        # A refresh replaces the selection, so a new object tells of one since the step before.
        refreshed, self._selected = self.stabilizer.selected is not self._selected, self.stabilizer.selected
        assert self.model.training
        result = super().__call__(batch, **now)
        after = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.calls.append(Call(batch, lr=lr, refreshed=refreshed, after=after, **now))
        return result


def no_recall(epoch: int) -> dict[str, bytes]:
    raise AssertionError("nothing is rolled back here")


@dataclass
class Told:
    run: Run
    calls: list[Call]
    progress: list[Progress]
    epochs: list[int]
    validations: int

    @property
    def metrics(self) -> list[dict[str, float]]:
        return [record.metrics for record in self.run.state.history]


@pytest.fixture(scope="module")
def told() -> Told:
    """Two epochs, and what everybody was told meanwhile."""
    run = digits_run(CHANGES)
    parts = {name: getattr(run.step, name) for name in TrainingStep.__dataclass_fields__}
    recorded = RecordedStep(**parts)
    progress: list[Progress] = []
    epochs: list[int] = []
    validations = []

    def validate() -> Any:
        validations.append(len(progress))
        return run.validate()

    watchers = Watchers(validate, progress.append, lambda state, _: epochs.append(state.epoch), no_recall)
    train(run.state, recorded, run.images, run.labels, run.plan, watchers)
    return Told(run, recorded.calls, progress, epochs, len(validations))


def test_every_step_gets_the_next_images_of_the_epochs_order_augmented_by_sample(told: Told) -> None:
    assert len(told.calls) == 2 * STEPS
    plan, run = told.run.plan, told.run
    for number, call in enumerate(told.calls):
        epoch, index = 1 + number // STEPS, number % STEPS
        samples = epoch_order(400, plan.seed, epoch)[49 * index : 49 * (index + 1)]
        cropped = augment(run.images[samples], ["crop"], sample_keys(samples, plan.seed, epoch, "augment"))
        assert torch.equal(call.batch.images, to_pixels(cropped))
        assert not torch.equal(cropped, run.images[samples])
        assert torch.equal(call.batch.labels, run.labels[samples])
        assert torch.equal(call.batch.keys, sample_keys(samples, plan.seed, epoch, "attack"))
        assert (call.batch.global_size, call.batch.start) == (49, 0)


def test_schedules_are_followed_step_by_step(told: Told) -> None:
    plan, total = told.run.plan, 2 * STEPS
    assert [call.lr for call in told.calls] == [plan.learning_rate.at(step) for step in range(total)]
    assert [call.eps_factor for call in told.calls] == pytest.approx([min(1, (s + 1) / 8) for s in range(total)])
    assert [call.awp_gamma for call in told.calls] == [0.0] * 4 + [0.02] * 12
    assert [call.sns_weight for call in told.calls] == pytest.approx([0.5 * max(0, (s - 7) / 8) for s in range(total)])


def test_metrics_say_where_the_schedules_stood_at_the_end_of_the_epoch(told: Told) -> None:
    _, first, second = told.metrics
    assert (first["schedule/eps"], second["schedule/eps"]) == pytest.approx((0.1, 0.1))
    assert (first["schedule/sns_weight"], second["schedule/sns_weight"]) == (0.0, 0.5)
    assert [first["schedule/lr"], second["schedule/lr"]] == [told.calls[7].lr, told.calls[15].lr]


def test_the_stabilizing_part_appears_once_its_weight_grows(told: Told) -> None:
    untrained, first, second = told.metrics
    assert "loss" not in untrained
    assert {name for name in first if name.startswith("loss")} == {"loss", "loss/adversarial_ce"}
    assert {name for name in second if name.startswith("loss/")} == {"loss/adversarial_ce", "loss/stabilizing"}
    for metrics in (first, second):
        parts = [value for name, value in metrics.items() if name.startswith("loss/")]
        assert metrics["loss"] == pytest.approx(sum(parts))
    assert second["loss/stabilizing"] > 0


def test_neurons_are_selected_every_third_step_and_at_the_end_of_the_epoch(told: Told) -> None:
    assert [number for number, call in enumerate(told.calls) if call.refreshed] == [0, 3, 6, 8, 11, 14]


def test_sns_sleeps_up_to_one_epoch_before_its_weight_grows() -> None:
    run = digits_run({"training": {"epochs": 4}, "stabilize": {"warmup_start": 0.5, "warmup_end": 0.75}})
    recorded = RecordedStep(**{name: getattr(run.step, name) for name in TrainingStep.__dataclass_fields__})
    replace(run, step=recorded).go()
    weights = [call.sns_weight for call in recorded.calls]
    assert weights[:STEPS] == [None] * STEPS
    assert weights[STEPS : 2 * STEPS] == [0.0] * STEPS
    assert all(weight > 0 for weight in weights[2 * STEPS :])
    assert weights[3 * STEPS :] == [0.5] * STEPS
    assert run.state.history[1].metrics["schedule/sns_weight"] == 0.0


def test_neurons_are_selected_once_an_epoch_by_default() -> None:
    run = digits_run({"training": {"epochs": 2}, "stabilize": {"refresh_steps": None}})
    recorded = RecordedStep(**{name: getattr(run.step, name) for name in TrainingStep.__dataclass_fields__})
    replace(run, step=recorded).go()
    assert [number for number, call in enumerate(recorded.calls) if call.refreshed] == [0, 8]


def test_the_classifier_is_the_average_of_the_steps_weights(told: Told) -> None:
    average = told.calls[0].after
    for call in told.calls[1:]:
        average = {name: 0.9 * average[name] + 0.1 * call.after[name] for name in average}
    torch.testing.assert_close(dict(told.run.state.classifier.state_dict()), average, rtol=1e-5, atol=1e-6)


def test_watchers_are_told_of_the_untrained_network_every_step_and_every_epoch(told: Told) -> None:
    assert told.epochs == [0, 1, 2]
    assert told.validations == 3
    assert [(p.epoch, p.step, p.steps) for p in told.progress] == [(e, s, 8) for e in (1, 2) for s in range(1, 9)]
    last = told.progress[-1]
    assert last.losses == pytest.approx(
        {name: told.metrics[2][f"loss/{name}"] for name in ("adversarial_ce", "stabilizing")}
    )
    assert last.images_per_second == pytest.approx(told.metrics[2]["throughput/images_per_second"])


def test_every_layer_is_followed(told: Told) -> None:
    for epoch, metrics in enumerate(told.metrics):
        for layer in ("0", "2", "5"):
            assert metrics[f"sensitivity/absolute/{layer}"] > 0
            assert metrics[f"sensitivity/relative/{layer}"] > 0
            assert (f"sensitivity/kept/{layer}" in metrics) == (epoch > 0)
            assert 0 <= metrics.get(f"sensitivity/kept/{layer}", 0) <= 1


def test_metrics_of_sensitivity_are_means_over_the_neurons_of_the_record(told: Told) -> None:
    record = told.run.state.history[-1]
    for layer, values in record.sensitivity.items():
        assert record.metrics[f"sensitivity/absolute/{layer}"] == pytest.approx(values.absolute.mean().item())
        assert record.metrics[f"sensitivity/relative/{layer}"] == pytest.approx(values.relative.mean().item())
        selected = told.run.state.selected[layer]
        assert len(selected) == selected_count(len(values.absolute), 0.2)
        assert values.absolute[selected].min() >= values.absolute.sort(descending=True).values[len(selected) - 1]


def test_only_the_newest_record_keeps_its_neurons(told: Told) -> None:
    assert [bool(record.sensitivity) for record in told.run.state.history] == [False, False, True]
    assert told.run.state.initial.keys() == {"0", "2", "5"}


@dataclass(frozen=True)
class Judgement:
    """What a validation might say."""

    robust_accuracy: float = 0.5
    clean_accuracy: float = 0.9
    values: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    images: int = 40
    not_finite: int = 0

    @property
    def robust_accuracies(self) -> dict[str, float]:
        return {"pgd": self.robust_accuracy}

    @property
    def sensitivity(self) -> dict[str, LayerSensitivity]:
        values = torch.tensor(self.values, dtype=torch.float64)
        return {"0": LayerSensitivity(values, torch.ones_like(values), values)}


def judged(*judgements: Judgement) -> tuple[TrainingState, list[bool]]:
    """A real training whose validations say this, and which of its epochs were told to be the best so far."""
    run = digits_run(
        {"training": {"epochs": len(judgements) - 1}, "stabilize": {"weight": 0, "ratio": 0.5}, "data": {"limit": 49}}
    )
    verdicts, bests = iter(judgements), []
    watchers = Watchers(lambda: next(verdicts), lambda _: None, lambda _, best: bests.append(best), no_recall)
    train(run.state, run.step, run.images, run.labels, run.plan, watchers)
    return run.state, bests


def test_kept_is_the_part_of_the_most_sensitive_neurons_that_stay() -> None:
    values = [(4.0, 3, 2, 1), (4.0, 3, 2, 1), (4.0, 1, 3, 2), (1.0, 4, 2, 3)]
    state, _ = judged(*(Judgement(values=one) for one in values))
    assert [r.metrics.get("sensitivity/kept/0") for r in state.history] == [None, 1.0, 0.5, 0.0]


def test_an_epoch_is_best_when_it_beats_those_before_it_and_the_untrained_network_never_is() -> None:
    accuracies = [(0.9, 0.9), (0.4, 0.8), (0.3, 0.9), (0.4, 0.8), (0.4, 0.85), (0.5, 0.1)]
    state, bests = judged(*(Judgement(robust, clean) for robust, clean in accuracies))
    assert bests == [False, True, False, False, True, True]
    assert state.best.epoch == 5


def test_images_without_finite_logits_are_recorded_and_too_many_end_the_training() -> None:
    state, _ = judged(Judgement(), Judgement(not_finite=2))
    assert "validation/not_finite" not in state.history[0].metrics
    assert state.history[1].metrics["validation/not_finite"] == 2.0
    with pytest.raises(TrainingStoppedError, match=r"3 of 40 images, more than 5% \(validation after epoch 1\)"):
        judged(Judgement(), Judgement(not_finite=3))


def test_without_sns_there_is_no_stabilizing_and_only_the_needed_half_is_forwarded() -> None:
    metrics = digits_run({"training": {"epochs": 1}, "stabilize": {"weight": 0}}).go().history[1].metrics
    assert "loss/stabilizing" not in metrics
    assert "train/adversarial_accuracy" in metrics
    assert "train/benign_accuracy" not in metrics
    assert metrics["schedule/sns_weight"] == 0
    assert metrics["sensitivity/absolute/0"] > 0


def test_a_finished_plan_trains_no_further() -> None:
    run = digits_run({"training": {"epochs": 1}})
    before = [p.clone() for p in run.go().model.parameters()]
    history = list(run.state.history)
    run.go()
    assert all(torch.equal(p, q) for p, q in zip(before, run.state.model.parameters(), strict=True))
    assert run.state.history == history


def coloured() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10))


def test_a_training_from_files_is_that_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digits = load("digits", Source(None), validation_fraction=0.1, seed=0, limit=300).train
    for number, (image, label) in enumerate(zip(digits.images, digits.labels, strict=True)):
        path = tmp_path / "set" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)
    ends = []
    for memory in (4.0, 0.0):
        dataset = load("folder", Source(tmp_path / "set", memory=memory), validation_fraction=0.1, seed=0)
        run = digits_run({"training": {"epochs": 2}}, coloured, dataset)
        assert isinstance(run.images, ImageFiles) == (memory == 0)
        ends.append(run.go().model.state_dict())
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_an_epoch_goes_once_over_the_own_images_whatever_there_is_of_extra_ones() -> None:
    """The last 100 of 300 images are extra, and 20 of 50 in a batch: six steps of 30 of the 200 others."""
    changes = {"data": {"limit": 300, "extra_ratio": 0.4}, "training": {"epochs": 1, "batch_size": 50}}
    dataset = load("digits", Source(None), validation_fraction=0.1, seed=0, limit=300)
    run = digits_run(changes, dataset=replace(dataset, extra=100))
    seen: list[tuple[int, int]] = []
    run.go(on_step=lambda progress: seen.append((progress.step, progress.steps)))
    assert run.plan.extra == Extra(100, 20)
    assert seen == [(step, 200 // 30) for step in range(1, 7)]
