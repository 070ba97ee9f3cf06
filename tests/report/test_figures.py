from __future__ import annotations

import io
from dataclasses import replace

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distsens.report import training_figure
from distsens.training import EpochRecord


def curves(axes: Axes) -> dict[str, Line2D]:
    """Lines over epochs by their label; matplotlib gives an unlabelled line a name that begins with an underscore."""
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def assert_follows(line: Line2D, history: list[EpochRecord], metric: str) -> None:
    assert list(line.get_xdata()) == [record.epoch for record in history]
    assert list(line.get_ydata()) == [record.metrics[metric] for record in history]


@pytest.fixture
def figure(history: list[EpochRecord]) -> Figure:
    return training_figure(history, best_epoch=2, title="a run")


def test_accuracies_are_drawn_over_epochs(figure: Figure, history: list[EpochRecord]) -> None:
    lines = curves(figure.axes[0])
    assert list(lines) == ["clean", "robust (validation attack)"]
    assert_follows(lines["clean"], history, "validation/clean_accuracy")
    assert_follows(lines["robust (validation attack)"], history, "validation/robust_accuracy")
    bottom, top = figure.axes[0].get_ylim()
    assert bottom == 0
    assert 1 <= top < 1.1
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == list(lines)


def test_accuracy_under_the_training_attack_is_drawn_where_it_was_measured(history: list[EpochRecord]) -> None:
    name = "validation/training_attack_accuracy"
    watched = [replace(one, metrics={**one.metrics, name: 0.7}) for one in history[:2]]
    line = curves(training_figure([*watched, *history[2:]], best_epoch=2, title="a run").axes[0])["training attack"]
    assert_follows(line, watched, name)


@pytest.mark.parametrize(("panel", "measure"), [(1, "absolute"), (2, "relative")])
def test_every_layers_sensitivity_is_drawn_over_epochs(
    figure: Figure, history: list[EpochRecord], panel: int, measure: str
) -> None:
    lines = curves(figure.axes[panel])
    assert list(lines) == ["conv1", "conv2", "fc1"]
    for layer, line in lines.items():
        assert_follows(line, history, f"sensitivity/{measure}/{layer}")
    assert figure.axes[panel].get_ylim()[0] == 0


def test_the_best_epoch_is_marked_in_every_panel(figure: Figure) -> None:
    for axes in figure.axes:
        (mark,) = [line for line in axes.lines if line not in curves(axes).values()]
        assert set(mark.get_xdata()) == {2}
        (word,) = axes.texts
        assert (word.get_text(), word.xy[0]) == ("best", 2)


def test_panels_are_titled_and_labelled(figure: Figure) -> None:
    assert figure.get_suptitle() == "a run"
    assert [axes.get_title() for axes in figure.axes] == ["accuracy", "absolute sensitivity", "relative sensitivity"]
    assert all(axes.get_xlabel() == "epoch" and axes.get_ylabel() for axes in figure.axes)


def test_the_legend_names_the_layers_and_no_two_lines_look_the_same(figure: Figure) -> None:
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["conv1", "conv2", "fc1"]
    for axes in figure.axes:
        looks = [(to_hex(line.get_color()), line.get_linestyle()) for line in curves(axes).values()]
        assert len(set(looks)) == len(looks)


def deep(history: list[EpochRecord], layers: int) -> list[EpochRecord]:
    extra = {f"sensitivity/{m}/layer{n}": 0.1 for m in ("absolute", "relative") for n in range(layers)}
    return [replace(record, metrics={**record.metrics, **extra}) for record in history]


def test_all_layers_of_a_deep_network_are_drawn_and_some_of_them_named(history: list[EpochRecord]) -> None:
    figure = training_figure(deep(history, 22), best_epoch=2, title="deep")
    lines = curves(figure.axes[1])
    assert len(lines) == 25
    assert len({(line.get_color(), line.get_linestyle()) for line in lines.values()}) == 25
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[0] == "conv1"
    assert 6 <= len(named) <= 12
    assert set(named) < set(lines)


def test_a_run_of_one_epoch_can_be_drawn_and_saved(history: list[EpochRecord]) -> None:
    file = io.BytesIO()
    training_figure(history[:2], best_epoch=1, title="$not maths_").savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")
